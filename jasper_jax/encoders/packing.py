"""Packing: which texts of a batch share a row, and how many rows a batch gets.

Texts are short and rows are long: a batch of B texts becomes R rows of L tokens, several texts in each, so that little
of what the encoder computes is padding. L is one for a stage. R varies with the batch's tokens, but a compiled program
has one R; every batch of a stage is known beforehand (a function of recipe and seed), so the few R that together waste
the least are chosen, and each is one program.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LADDER = ((64, 4), (128, 8), (512, 16), (2048, 64), (1 << 30, 256))
"""(up to this length, row lengths are multiples of this)."""
ROOMY = 128
"""Rows of short texts are made this long, where a batch fills several: very short rows cannot be filled well."""


class Packing(NamedTuple):
    """``row [B]`` and ``place [B]``: text b is the ``place[b]``-th (from 0) of its row; ``column [B]`` its first."""

    row: np.ndarray
    place: np.ndarray
    column: np.ndarray

    @property
    def rows(self) -> int:
        return int(self.row.max()) + 1

    @property
    def texts(self) -> int:
        """The most texts that one row holds."""
        return int(self.place.max()) + 1


def row_length(longest: int, tokens: float) -> int:
    """The row length for texts of at most ``longest`` tokens and batches of about ``tokens``: the longest text rounded
    up to the ladder, but ``ROOMY`` where a batch still has eight such rows (longer rows only cost attention)."""
    return round_up(roomy(longest, tokens))


def roomy(longest: int, tokens: float) -> int:
    """What :func:`row_length` rounds."""
    return max(longest, min(ROOMY, int(tokens) // 8))


def round_up(length: int) -> int:
    """``length`` rounded up to the ladder."""
    step = next(step for limit, step in LADDER if length <= limit)
    return -(-length // step) * step


def pack(lengths: np.ndarray, row: int) -> Packing:
    """Best fit, longest first: ``[B]`` token counts, each at most ``row`` -> where each text goes.

    At most 11/9 of the least possible number of rows, and with many short texts hardly more than that number.

    Raises:
      ValueError: a text is longer than a row.
    """
    lengths = np.maximum(np.asarray(lengths), 1)  # an empty text still is one
    if lengths.max(initial=0) > row:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit a row of {row}")
    filled = BestFit()
    rows, places, columns = (np.zeros(len(lengths), np.int32) for _ in range(3))
    for text in np.argsort(-lengths, kind="stable"):
        rows[text], places[text], columns[text] = filled.put(int(text), int(lengths[text]), row)
    return Packing(rows, places, columns)


class BestFit:
    """Rows being filled: a text goes where it leaves the least room.

    ``length[r]`` tokens has row r; ``texts[r]`` are the texts in it and ``columns[r]`` where they begin. A row of L
    tokens takes at most ``most(L)`` texts; None: as many as fit.
    """

    def __init__(self, most: Callable[[int], int] | None = None) -> None:
        self.length: list[int] = []
        self.texts: list[list[int]] = []
        self.columns: list[list[int]] = []
        self._most = most
        self._room: list[tuple[int, int]] = []  # (tokens left, row), ascending

    def put(self, text: int, tokens: int, new: int) -> tuple[int, int, int]:
        """Put a text of so many tokens into a row, a new one of ``new`` tokens where it fits none; the text's row,
        place and first column."""
        found = bisect_left(self._room, (tokens, -1))
        if found < len(self._room):
            left, row = self._room.pop(found)
        else:
            left, row = new, len(self.length)
            self.length.append(new)
            self.texts.append([])
            self.columns.append([])
        place, column = len(self.texts[row]), self.length[row] - left
        self.texts[row].append(text)
        self.columns[row].append(column)
        if self._most is None or place + 1 < self._most(self.length[row]):
            insort(self._room, (left - tokens, row))
        return row, place, column


def fill_rows(
    tokens: Sequence[np.ndarray], packing: Packing, shape: tuple[int, int], texts: int, padding: int
) -> tuple[np.ndarray, np.ndarray]:
    """``tokens[b]`` ids of text b -> ids ``[R, L]`` of ``shape`` and lengths ``[R, texts]`` of each row's texts."""
    ids = np.full(shape, padding, np.int32)
    lengths = np.zeros((shape[0], texts), np.int32)
    for one, row, place, column in zip(tokens, packing.row, packing.place, packing.column, strict=True):
        ids[row, column : column + len(one)] = one
        lengths[row, place] = len(one)
    return ids, lengths


def choose_rows(needed: np.ndarray, shapes: int) -> np.ndarray:
    """At most ``shapes`` row counts, ascending, that cover batches needing ``needed [K]`` rows with the least waste.

    Each batch takes the smallest count that holds it. Exact, by dynamic programming over the distinct needs.
    """
    values, counts = np.unique(np.asarray(needed, np.int64), return_counts=True)
    n = len(values)
    total = np.concatenate([[0], np.cumsum(counts)])
    best = np.full((min(shapes, n) + 1, n + 1), np.inf)
    best[0, 0] = 0.0
    cut = np.zeros(best.shape, int)
    for used in range(1, len(best)):
        for end in range(1, n + 1):
            options = best[used - 1, :end] + (total[end] - total[:end]) * values[end - 1]
            cut[used, end] = int(options.argmin())
            best[used, end] = options[cut[used, end]]
    used, end = int(best[:, n].argmin()), n
    chosen: list[int] = []
    while end:
        chosen.append(int(values[end - 1]))
        used, end = used - 1, cut[used, end]
    return np.array(chosen[::-1])
