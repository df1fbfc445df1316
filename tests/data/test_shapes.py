"""The table of static shapes: covers every batch, stays within its rows, and wastes no more than one shape would."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jasper_jax.data.shapes import choose_row, group_sizes, needed_lengths, round_up, shape_table


def test_lengths_are_rounded_up_to_the_ladder() -> None:
    np.testing.assert_array_equal(
        round_up(np.array([1, 8, 9, 128, 129, 512, 513, 3000])), [4, 8, 12, 128, 144, 512, 576, 3072]
    )


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.sampled_from([8, 16, 20])), elements=st.integers(1, 300)),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_groups_and_table_cover_every_batch(lengths: np.ndarray, groups: int, rows: int) -> None:
    sizes = group_sizes(lengths, groups)
    assert sum(sizes) == lengths.shape[1]
    assert len(sizes) <= groups
    needed = needed_lengths(lengths, sizes)
    table = shape_table(needed, sizes, rows)
    assert len(table) <= rows
    for batch in needed:
        assert (table[choose_row(table, batch)] >= batch).all()


def test_the_group_sizes_are_the_best_for_the_typical_batch() -> None:
    lengths = np.random.default_rng(0).geometric(0.04, size=(1, 16))
    ends = round_up(np.sort(lengths[0]))

    def cost(cuts: tuple[int, ...]) -> int:
        stops = (*cuts, 16)
        return sum((stop - start) * ends[stop - 1] for start, stop in zip((0, *cuts), stops))

    best = min(cost(cuts) for n in range(3) for cuts in itertools.combinations(range(1, 16), n))
    sizes = group_sizes(lengths, 3)
    assert cost(tuple(np.cumsum(sizes)[:-1])) == best


def test_a_long_tail_gets_a_small_group() -> None:
    lengths = np.tile(np.r_[np.full(120, 20), np.full(8, 200)], (3, 1))
    assert group_sizes(lengths, 2) == (120, 8)


def test_the_table_is_the_best_over_contiguous_segments() -> None:
    sizes = (8, 4, 4)
    needed = needed_lengths(np.random.default_rng(0).geometric(0.03, size=(40, 16)), sizes)
    values = np.unique(needed[:, -1])
    table = shape_table(needed, sizes, 3)
    cost = sum((table[choose_row(table, n)] * sizes).sum() for n in needed)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), 2):
        parts = np.split(values, cuts)
        tops = [needed[np.isin(needed[:, -1], p)].max(axis=0) for p in parts]
        best = min(best, sum(np.isin(needed[:, -1], p).sum() * (t * sizes).sum() for p, t in zip(parts, tops)))
    assert cost <= best


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not make a batch of 6"):
        needed_lengths(np.ones((1, 6), int), (4, 4))
    with pytest.raises(ValueError, match="no shape of the table"):
        choose_row(np.array([[8, 8]]), np.array([8, 16]))
