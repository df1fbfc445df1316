"""Texts of any lengths -> batches of few static shapes; every shape is one compiled program.

Short texts share rows of one length. Each long text gets its own row, and short texts fill the rest of it. Row lengths
come from a fixed table; which of them to use balances padding against compiled programs, solved exactly. Shapes depend
on the texts' lengths alone, so the same texts always run in the same shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jasper_jax.encoders.packing import ROOMY, BestFit, Packing, roomy

_MOST = 32


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


def length_table(longest: int) -> list[int]:
    """8, 16, .. 128, then eight lengths per doubling, and ``longest`` as the last."""
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


def rows_for(length: int, batch_tokens: int) -> int:
    """Rows of a full batch: about ``batch_tokens`` tokens, a multiple of 8 where there are so many."""
    rows = max(1, batch_tokens // length)
    return rows - rows % 8 if rows > 8 else rows


def plan_batches(lengths: np.ndarray, *, batch_tokens: int, longest: int, program_cost: float) -> list[RowBatch]:
    """Batches over texts of ``lengths`` tokens (each at most ``longest``), the longest rows first.

    ``batch_tokens`` bounds a batch's slots (one row is always allowed); ``program_cost`` is the cost of one more shape,
    in computed tokens.
    """
    if not len(lengths):
        return []
    tokens = np.maximum(np.asarray(lengths, np.int64), 1)
    order = np.argsort(-tokens, kind="stable")
    long, short = order[tokens[order] > ROOMY], order[tokens[order] <= ROOMY]
    rows = BestFit(texts_per_row)
    if len(long):
        table = length_table(longest)
        counts = np.bincount(np.searchsorted(table, tokens[long]), minlength=len(table))
        chosen = np.asarray(choose_lengths(counts, table, program_cost))
        for text in long:
            rows.put(int(text), int(tokens[text]), int(chosen[np.searchsorted(chosen, tokens[text])]))
    if len(short):
        fits = roomy(int(tokens[short].max()), int(tokens[short].sum()))
        new = next(length for length in length_table(ROOMY) if length >= fits)
        for text in short:
            rows.put(int(text), int(tokens[text]), new)
    return _in_batches(rows, batch_tokens)


def _in_batches(rows: BestFit, batch_tokens: int) -> list[RowBatch]:
    """Rows of one length together, as many as a batch holds; the last batch of a length has fewer, a power of two."""
    batches = []
    for length in sorted(set(rows.length), reverse=True):
        same = [row for row, row_length in enumerate(rows.length) if row_length == length]
        full = rows_for(length, batch_tokens)
        for first in range(0, len(same), full):
            group = same[first : first + full]
            count = full if len(group) == full else min(full, 1 << (len(group) - 1).bit_length())
            slots = [(row, place) for row, source in enumerate(group) for place in range(len(rows.texts[source]))]
            row, place = np.array(slots, np.int32).reshape(-1, 2).T
            columns = np.array([column for source in group for column in rows.columns[source]], np.int32)
            indices = np.array([text for source in group for text in rows.texts[source]])
            batches.append(RowBatch(indices, Packing(row, place, columns), count, length))
    return batches
