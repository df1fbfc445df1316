"""Ragged texts -> batches of few static shapes: every shape is one compiled program.

Short texts share rows of one length, long ones get rows of their own, whose ends short ones fill. Row lengths come from
a fixed table, rows of a batch from the tokens it may hold. Which table lengths the long texts use is a trade between
padding and programs, solved exactly; all depends on the lengths alone, so the same texts always run in the same shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jasper_jax.encoders.packing import ROOMY, BestFit, Packing, roomy

_MOST = 32


class Batch(NamedTuple):
    """Rows ``[rows, length]``, each with at most ``texts_per_row(length)`` texts: ``packing`` says where text
    ``indices[i]`` is."""

    indices: np.ndarray
    packing: Packing
    rows: int
    length: int


def texts_per_row(length: int) -> int:
    """The most texts that a row of ``length`` tokens takes: part of a program's shape, so a rule."""
    return max(1, min(length // 4, _MOST))


def length_table(longest: int) -> list[int]:
    """8, 16, .. 128, then eight steps per octave, as far as ``longest``, which ends it."""
    table, step = [], 8
    length = 8
    while length < longest:
        table.append(length)
        if length >= 64 and length & (length - 1) == 0:
            step = length // 8
        length += step
    return [*table, longest]


def choose_lengths(counts: np.ndarray, table: list[int], program_cost: float) -> list[int]:
    """The table lengths to use for ``counts[i]`` texts of at most ``table[i]`` tokens: the set with the least
    (tokens, padding included) + ``program_cost`` per length. Every text fits; dynamic programming over the table."""
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


def plan_batches(lengths: np.ndarray, *, batch_tokens: int, longest: int, program_cost: float) -> list[Batch]:
    """Batches over texts of ``lengths`` tokens (each at most ``longest``), the longest rows first.

    ``batch_tokens`` bounds a batch's slots (one row is always allowed); ``program_cost`` is what one more shape is
    worth, in tokens computed.
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


def _in_batches(rows: BestFit, batch_tokens: int) -> list[Batch]:
    """Rows of one length together, as many as a batch holds; the last batch of a length has fewer, a power of two."""
    batches = []
    for length in sorted(set(rows.length), reverse=True):
        same = [row for row, its in enumerate(rows.length) if its == length]
        full = rows_for(length, batch_tokens)
        for first in range(0, len(same), full):
            group = same[first : first + full]
            count = full if len(group) == full else min(full, 1 << (len(group) - 1).bit_length())
            where = [(row, place) for row, one in enumerate(group) for place in range(len(rows.texts[one]))]
            batches.append(
                Batch(
                    np.array([text for one in group for text in rows.texts[one]]),
                    Packing(
                        np.array([row for row, _ in where], np.int32),
                        np.array([place for _, place in where], np.int32),
                        np.array([column for one in group for column in rows.columns[one]], np.int32),
                    ),
                    count,
                    length,
                )
            )
    return batches
