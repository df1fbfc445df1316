"""Static shapes: into which groups a batch is cut, and at which lengths the groups are encoded.

A batch of B texts is sorted by length and cut into G groups of fixed sizes; group g is padded to a length of its own.
Lengths of real text have a long tail, so the groups of the longest texts are small. Since every batch of a stage is
known beforehand (a function of recipe and seed), so are the lengths its groups need: sizes, and a table with a few
rows ``(L_1 .. L_G)`` that covers every batch, are chosen to waste the least padding. Each row is one compiled program.
"""

from __future__ import annotations

import numpy as np

LADDER = ((64, 4), (128, 8), (512, 16), (2048, 64), (1 << 30, 256))
"""(up to this length, lengths are multiples of this)."""


def round_up(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to the ladder."""
    out = np.asarray(lengths)
    steps = np.select([out <= limit for limit, _ in LADDER], [step for _, step in LADDER])
    return -(-out // steps) * steps


UNITS = 16
"""A group's size is a multiple of B/16 where 16 divides B, else of the next smaller power of two that does."""


def group_sizes(lengths: np.ndarray, groups: int) -> tuple[int, ...]:
    """Sizes of at most ``groups`` groups, ascending in length, for ``[K, B]`` token counts of K batches.

    Minimises the padded tokens of a batch whose sorted lengths are, position by position, the 90th percentile over
    the K batches; exact, by dynamic programming over the positions a group may end at.
    """
    b = lengths.shape[1]
    units = UNITS
    while b % units:
        units //= 2
    size = b // units
    typical = np.quantile(np.sort(lengths, axis=1), 0.9, axis=0, method="higher")
    ends = round_up(np.maximum(typical[size - 1 :: size], 1)).astype(np.int64)
    best = np.full((groups + 1, units + 1), np.inf)
    best[0, 0] = 0.0
    before = np.zeros((groups + 1, units + 1), int)
    for g in range(1, groups + 1):
        for end in range(1, units + 1):
            options = best[g - 1, :end] + (end - np.arange(end)) * ends[end - 1]
            before[g, end] = int(options.argmin())
            best[g, end] = options[before[g, end]]
    g, end = int(best[:, units].argmin()), units
    sizes: list[int] = []
    while end:
        start = before[g, end]
        sizes.append(int(end - start) * size)
        g, end = g - 1, start
    return tuple(sizes[::-1])


def needed_lengths(lengths: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """``[K, B]`` token counts of K batches -> ``[K, G]`` rounded length each group of ``sizes`` needs."""
    if lengths.shape[1] != sum(sizes):
        raise ValueError(f"groups of {sizes} texts do not make a batch of {lengths.shape[1]}")
    longest = np.sort(lengths, axis=1)[:, np.cumsum(sizes) - 1]
    return round_up(np.maximum(longest, 1))


def shape_table(needed: np.ndarray, sizes: tuple[int, ...], rows: int) -> np.ndarray:
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
            cost[i, j] = counts[i:j].sum() * (top * sizes).sum()
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
