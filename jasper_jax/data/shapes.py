"""The table of static shapes: at which lengths the groups of a batch are encoded.

A batch of B texts is sorted by length and cut into G groups of B/G texts; group g is padded to a length of its own.
Since every batch of a stage is known beforehand (a function of recipe and seed), so are the lengths its groups need.
A table with a few rows ``(L_1 .. L_G)`` that covers every batch is chosen to waste the least padding; each row is one
compiled program.
"""

from __future__ import annotations

import numpy as np

LADDER = ((128, 8), (512, 16), (2048, 64), (1 << 30, 256))
"""(up to this length, lengths are multiples of this)."""


def round_up(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to the ladder."""
    out = np.asarray(lengths)
    steps = np.select([out <= limit for limit, _ in LADDER], [step for _, step in LADDER])
    return -(-out // steps) * steps


def needed_lengths(lengths: np.ndarray, groups: int) -> np.ndarray:
    """``[K, B]`` token counts of K batches -> ``[K, G]`` rounded length each group needs.

    Raises:
      ValueError: B does not divide into ``groups``.
    """
    k, b = lengths.shape
    if b % groups:
        raise ValueError(f"a batch of {b} does not divide into {groups} groups")
    longest = np.sort(lengths, axis=1).reshape(k, groups, b // groups)[:, :, -1]
    return round_up(np.maximum(longest, 1))


def shape_table(needed: np.ndarray, rows: int) -> np.ndarray:
    """At most ``rows`` rows ``[R, G]`` that cover every row of ``needed`` with the least padding.

    Batches are ordered by the length of their longest group, where batches differ most, and cut into contiguous
    segments by dynamic programming; a segment's row is its elementwise maximum. Exact for that ordering.
    """
    values, inverse = np.unique(needed[:, -1], return_inverse=True)
    n = len(values)
    peaks = np.stack([needed[inverse == v].max(axis=0) for v in range(n)])
    counts = np.bincount(inverse, minlength=n)
    cost = np.full((n, n + 1), np.inf)
    tops: dict[tuple[int, int], np.ndarray] = {}
    for i in range(n):
        top = peaks[i]
        for j in range(i + 1, n + 1):
            top = np.maximum(top, peaks[j - 1])
            tops[i, j] = top
            cost[i, j] = counts[i:j].sum() * top.sum()
    best = np.full((rows + 1, n + 1), np.inf)
    best[0, 0] = 0.0
    cut = np.zeros((rows + 1, n + 1), int)
    for r in range(1, rows + 1):
        for j in range(1, n + 1):
            options = best[r - 1, :j] + cost[:j, j]
            cut[r, j] = int(options.argmin())
            best[r, j] = options[cut[r, j]]
    r, j = int(best[:, n].argmin()), n
    table: list[np.ndarray] = []
    while j:
        i = cut[r, j]
        table.append(tops[i, j])
        r, j = r - 1, i
    return np.stack(table[::-1])


def choose_row(table: np.ndarray, needed: np.ndarray) -> int:
    """The cheapest row of ``table`` that covers ``needed [G]``.

    Raises:
      ValueError: none does (the batch is not one of those the table was made for).
    """
    fits = np.flatnonzero((table >= needed).all(axis=1))
    if not len(fits):
        raise ValueError(f"no shape of the table {table.tolist()} covers {needed.tolist()}")
    return int(fits[table[fits].sum(axis=1).argmin()])
