"""Packing: which texts of a batch share a row, and how many rows a batch gets.

A batch of B texts becomes R rows of L tokens with several texts in each, so little padding is computed. A stage has one
L. R varies with a batch's tokens, but a compiled program has one R: since all batches of a stage are known from
recipe and seed, the few R that waste least over all of them are chosen.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LADDER = ((64, 4), (128, 8), (512, 16), (2048, 64), (1 << 30, 256))
"""(limit, step): row lengths up to the limit are multiples of the step."""
ROOMY = 128
"""Row length for short texts, where a batch fills several such rows: shorter rows leave more padding."""


class Packing(NamedTuple):
    """Text b is number ``place[b]`` (from 0) in row ``row[b]`` and begins in column ``column[b]``; all ``[B]``."""

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
    up to the ladder, but at least ``ROOMY`` where a batch fills eight such rows."""
    return round_up(roomy(longest, tokens))


def roomy(longest: int, tokens: float) -> int:
    """:func:`row_length` before rounding."""
    return max(longest, min(ROOMY, int(tokens) // 8))


def round_up(length: int) -> int:
    """``length`` rounded up to the ladder."""
    step = next(step for limit, step in LADDER if length <= limit)
    return -(-length // step) * step


def pack(lengths: np.ndarray, row: int) -> Packing:
    """Best-fit decreasing: token counts ``[B]``, each at most ``row`` -> the position of each text.

    Needs at most 11/9 of the minimal number of rows (up to a constant), close to it with many short texts. ValueError:
    a text is longer than a row.
    """
    lengths = np.maximum(np.asarray(lengths), 1)  # an empty text still takes a token
    if lengths.max(initial=0) > row:
        raise ValueError(f"a text of {lengths.max()} tokens does not fit a row of {row}")
    filled = BestFit()
    rows, places, columns = (np.zeros(len(lengths), np.int32) for _ in range(3))
    for text in np.argsort(-lengths, kind="stable"):
        rows[text], places[text], columns[text] = filled.put(int(text), int(lengths[text]), row)
    return Packing(rows, places, columns)


class BestFit:
    """Rows being filled: a text goes into the row where it leaves the least room.

    Row r has ``length[r]`` tokens and holds the texts ``texts[r]``, which begin at ``columns[r]``. A row of L tokens
    takes at most ``most(L)`` texts; None: no limit.
    """

    def __init__(self, most: Callable[[int], int] | None = None) -> None:
        self.length: list[int] = []
        self.texts: list[list[int]] = []
        self.columns: list[list[int]] = []
        self._most = most
        self._room: list[tuple[int, int]] = []  # (tokens left, row), ascending

    def put(self, text: int, tokens: int, new: int) -> tuple[int, int, int]:
        """Put a text of ``tokens`` tokens into a row, a new one of ``new`` tokens if it fits in none. Returns its row,
        place and first column."""
        best = bisect_left(self._room, (tokens, -1))
        if best < len(self._room):
            left, row = self._room.pop(best)
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
    """Token ids ``tokens[b]`` of each text -> ids ``[R, L] = shape``, and the lengths ``[R, texts]`` of the texts."""
    ids = np.full(shape, padding, np.int32)
    lengths = np.zeros((shape[0], texts), np.int32)
    for text, row, place, column in zip(tokens, *packing, strict=True):
        ids[row, column : column + len(text)] = text
        lengths[row, place] = len(text)
    return ids, lengths


@dataclass(frozen=True)
class RowDivision:
    """How the rows of a batch are divided: over the ``shards`` of a mesh, and into pieces of at most ``at_once`` rows
    (None: one piece) that are encoded in turn. A piece has at least one row for each shard, and as many for all."""

    shards: int = 1
    at_once: int | None = None

    def pieces(self, rows: Any) -> Any:
        """The fewest pieces of ``rows`` (a number or an array)."""
        return 1 if self.at_once is None else -(-rows // (max(1, self.at_once // self.shards) * self.shards))

    def fill(self, rows: Any) -> Any:
        """``rows`` (a number or an array) and as many empty ones as make the shares of all shards and pieces equal."""
        share = self.shards * self.pieces(rows)
        return -(-rows // share) * share


WHOLE = RowDivision()


def choose_rows(needed: np.ndarray, shapes: int) -> np.ndarray:
    """At most ``shapes`` row counts, ascending, that cover batches needing ``needed [K]`` rows with the least waste, by
    dynamic programming over the distinct needs. Each batch takes the smallest count that holds it."""
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
