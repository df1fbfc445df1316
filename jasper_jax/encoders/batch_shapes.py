"""Texts of any lengths -> batches of few static shapes; every shape is one compiled program.

Short texts share rows of one length. Each long text gets its own row, and short texts fill the rest of it. Row lengths
come from a fixed table; which of them to use balances padding against compiled programs, solved exactly. Shapes depend
on the texts' lengths and the machine alone, so the same texts always run in the same shapes.

On CPU the table is fine, as padding costs more than a program. On accelerators it has the few lengths that the fused
attention kernels take in large tiles, and each length two numbers of rows: all programs are known beforehand.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jasper_jax.encoders.packing import ROOMY, BestFit, Packing, roomy

_MOST = 32
_PARTS = 8
_BATCH_TOKENS_CPU = 1024  # of a device; measured
_BATCH_TOKENS, _LEAST_TOKENS = 32768, 8192  # on accelerators: of all devices together; at least, of each
_PROGRAM_COST = 4e10  # multiplications and additions in the time that compiling one more shape takes on CPU
_TILES = {"cpu": 1, "gpu": 64, "tpu": 128}
"""The fused kernels take rows of a multiple of this many tokens (``encoders.attention``)."""


class RowBatch(NamedTuple):
    """``rows`` rows of ``length`` tokens, each with at most ``texts_per_row(length)`` texts; ``packing`` places the
    texts ``indices [n]``, in this order."""

    indices: np.ndarray
    packing: Packing
    rows: int
    length: int


def texts_per_row(length: int) -> int:
    """The most texts in a row of ``length`` tokens; part of a program's shape, so it depends on nothing else."""
    return max(1, min(length // 4, _MOST))


def length_table(longest: int, tile: int = 1) -> list[int]:
    """Row lengths, the last of which holds ``longest`` tokens.

    ``tile`` 1: 8, 16, .. 128, then eight lengths per doubling, and ``longest``. Else ``tile`` times powers of two below
    ``longest``, and ``longest`` rounded up to ``tile``.
    """
    if tile > 1:
        last = -(-longest // tile) * tile
        return [*(tile << k for k in range(last.bit_length()) if tile << k < last), last]
    table, step, length = [], 8, 8
    while length < longest:
        table.append(length)
        if length >= 64 and length & (length - 1) == 0:
            step = length // 8
        length += step
    return [*table, longest]


def choose_lengths(counts: np.ndarray, table: list[int], program_cost: float) -> list[int]:
    """The lengths of ``table`` to use; ``counts[i]`` texts fit ``table[i]`` but no shorter one.

    Minimises the computed tokens (padding included) plus ``program_cost`` per length, by dynamic programming.
    """
    used = np.flatnonzero(counts)
    total = np.concatenate([[0], np.cumsum(counts[used])])
    best, before = np.zeros(len(used) + 1), np.zeros(len(used) + 1, int)
    for end in range(1, len(used) + 1):
        padded = (total[end] - total[:end]) * table[used[end - 1]]
        costs = best[:end] + padded + program_cost
        before[end] = int(np.argmin(costs))
        best[end] = costs[before[end]]
    chosen, end = [], len(used)
    while end > 0:
        chosen.append(table[used[end - 1]])
        end = before[end]
    return chosen[::-1]


@dataclasses.dataclass(frozen=True)
class RowShapes:
    """The shapes that batches may have.

    longest:      tokens of the longest text.
    batch_tokens: token slots of a full batch; a row per device is always allowed.
    program_cost: the cost of one more shape in computed tokens, used where ``tile`` is 1.
    tile:         row lengths are tiles times powers of two (:func:`length_table`), and a batch has all rows or an
                  eighth; 1: a fine table, and a length's last batch has a power of two of rows.
    devices:      a batch's rows are a multiple of it.
    """

    longest: int
    batch_tokens: int
    program_cost: float = 0.0
    tile: int = 1
    devices: int = 1

    def lengths(self, longest: int | None = None) -> list[int]:
        """The row lengths for texts of at most ``longest`` tokens (default: those of all texts)."""
        return length_table(longest or max(self.longest, ROOMY), self.tile)

    @property
    def length_cost(self) -> float:
        """The cost of one more row length: a program, or half of a part of a batch as padding."""
        return self.program_cost if self.tile == 1 else self.batch_tokens / _PARTS / 2

    def full(self, length: int) -> int:
        """Rows of a full batch: about ``batch_tokens`` tokens, a multiple of 8 per device where there are so many."""
        rows = max(1, self.batch_tokens // length // self.devices)
        return (rows - rows % 8 if rows > 8 else rows) * self.devices

    def part(self, length: int) -> int:
        """Rows of the small batches on accelerators, an eighth of a full one."""
        return self._divisible(-(-self.full(length) // _PARTS))

    def rows(self, number: int, length: int) -> list[int]:
        """The rows of each batch, for ``number`` rows of a length."""
        full = self.full(length)
        rest = number % full
        if not rest:
            last = []
        elif self.tile == 1:
            last = [min(full, self._divisible(1 << (rest - 1).bit_length()))]
        else:
            part = self.part(length)
            last = [part] * -(-rest // part)
            last = [full] if sum(last) >= full else last
        return [full] * (number // full) + last

    def every(self) -> list[tuple[int, int]]:
        """All shapes (rows, row length) where ``tile`` is above 1."""
        return sorted({(rows, length) for length in self.lengths() for rows in (self.full(length), self.part(length))})

    def _divisible(self, rows: int) -> int:
        return -(-rows // self.devices) * self.devices


def row_shapes(
    longest: int, platform: str, *, devices: int, flops_per_token: float, batch_tokens: int | None = None
) -> RowShapes:
    """The shapes for texts of at most ``longest`` tokens on the devices of a process; ``flops_per_token``: of the
    encoder; ``batch_tokens``: another number of slots of a full batch."""
    tokens = _BATCH_TOKENS_CPU * devices if platform == "cpu" else max(_BATCH_TOKENS, _LEAST_TOKENS * devices)
    return RowShapes(longest, batch_tokens or tokens, _PROGRAM_COST / flops_per_token, _TILES[platform], devices)


def plan_batches(lengths: np.ndarray, shapes: RowShapes) -> list[RowBatch]:
    """Batches over texts of ``lengths`` tokens (each at most ``shapes.longest``), the longest rows first."""
    if not len(lengths):
        return []
    tokens = np.maximum(np.asarray(lengths, np.int64), 1)
    order = np.argsort(-tokens, kind="stable")
    long, short = order[tokens[order] > ROOMY], order[tokens[order] <= ROOMY]
    rows = BestFit(texts_per_row)
    if len(long):
        table = shapes.lengths()
        counts = np.bincount(np.searchsorted(table, tokens[long]), minlength=len(table))
        chosen = np.asarray(choose_lengths(counts, table, shapes.length_cost))
        for text in long:
            rows.put(int(text), int(tokens[text]), int(chosen[np.searchsorted(chosen, tokens[text])]))
    if len(short):
        fits = roomy(int(tokens[short].max()), int(tokens[short].sum()))
        new = next(length for length in shapes.lengths(ROOMY) if length >= fits)
        for text in short:
            rows.put(int(text), int(tokens[text]), new)
    return _in_batches(rows, shapes)


def _in_batches(rows: BestFit, shapes: RowShapes) -> list[RowBatch]:
    """Rows of one length together, as many as a batch holds."""
    batches = []
    for length in sorted(set(rows.length), reverse=True):
        same = [row for row, row_length in enumerate(rows.length) if row_length == length]
        first = 0
        for count in shapes.rows(len(same), length):
            group = same[first : first + count]
            first += count
            slots = [(row, place) for row, source in enumerate(group) for place in range(len(rows.texts[source]))]
            row, place = np.array(slots, np.int32).reshape(-1, 2).T
            columns = np.array([column for source in group for column in rows.columns[source]], np.int32)
            indices = np.array([text for source in group for text in rows.texts[source]])
            batches.append(RowBatch(indices, Packing(row, place, columns), count, length))
    return batches
