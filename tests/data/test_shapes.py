"""The table of static shapes: covers every batch, stays within its rows, and wastes no more than one shape would."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jasper_jax.data.shapes import choose_row, needed_lengths, round_up, shape_table


def test_lengths_are_rounded_up_to_the_ladder() -> None:
    np.testing.assert_array_equal(
        round_up(np.array([1, 8, 9, 128, 129, 512, 513, 3000])), [8, 8, 16, 128, 144, 512, 576, 3072]
    )


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 12), st.just(8)), elements=st.integers(1, 300)), st.integers(1, 4))
def test_a_table_covers_every_batch(lengths: np.ndarray, rows: int) -> None:
    needed = needed_lengths(lengths, 4)
    table = shape_table(needed, rows)
    assert len(table) <= rows
    for batch in needed:
        assert (table[choose_row(table, batch)] >= batch).all()


def test_the_table_is_the_best_over_contiguous_segments() -> None:
    needed = needed_lengths(np.random.default_rng(0).geometric(0.03, size=(40, 16)), 4)
    values = np.unique(needed[:, -1])
    table = shape_table(needed, 3)
    cost = sum(table[choose_row(table, n)].sum() for n in needed)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), 2):
        parts = np.split(values, cuts)
        tops = [needed[np.isin(needed[:, -1], p)].max(axis=0) for p in parts]
        best = min(best, sum(np.isin(needed[:, -1], p).sum() * t.sum() for p, t in zip(parts, tops)))
    assert cost <= best


def test_a_batch_that_does_not_divide_or_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 6 does not divide into 4 groups"):
        needed_lengths(np.ones((1, 6), int), 4)
    with pytest.raises(ValueError, match="no shape of the table"):
        choose_row(np.array([[8, 8]]), np.array([8, 16]))
