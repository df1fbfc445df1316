"""Ragged texts -> batches of few static shapes: every shape is one compiled program.

Lengths come from a fixed table, rows from the tokens a batch may hold. Which table lengths a set of texts uses is a
trade between padding and programs, solved exactly; it depends on the lengths alone, so the same texts always run in
the same shapes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """``indices`` of the texts it holds (at most ``rows``), padded to ``[rows, length]``."""

    indices: np.ndarray
    rows: int
    length: int


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
    """Batches over texts of ``lengths`` tokens (each at most ``longest``), the longest texts first.

    A batch takes as many texts as fit in order of length, so only the last one may have empty rows, and those at
    most as many as it has texts. ``program_cost`` is what one more shape is worth, in tokens computed.
    """
    if not len(lengths):
        return []
    table = length_table(longest)
    slots = np.searchsorted(table, np.maximum(lengths, 1))
    chosen = choose_lengths(np.bincount(slots, minlength=len(table)), table, program_cost)
    padded = np.asarray(chosen)[np.searchsorted(chosen, np.maximum(lengths, 1))]
    order = np.argsort(-lengths, kind="stable")
    batches, first = [], 0
    while first < len(order):
        length = int(padded[order[first]])
        rows = rows_for(length, batch_tokens)
        indices = order[first : first + rows]
        if len(indices) < rows:
            rows = min(rows, 1 << (len(indices) - 1).bit_length())
        batches.append(Batch(indices, rows, length))
        first += len(indices)
    return batches
