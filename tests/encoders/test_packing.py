"""Packing: every text in one row, in columns of its own, few rows; and the row counts that waste least."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jasper_jax.encoders.packing import RowDivision, choose_rows, pack, round_up, row_length


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 40)))
def test_texts_of_a_row_adjoin_in_order_and_do_not_overlap(lengths: np.ndarray) -> None:
    packing = pack(lengths, 40)
    for row in range(packing.rows):
        texts = np.flatnonzero(packing.row == row)
        texts = texts[np.argsort(packing.place[texts])]
        np.testing.assert_array_equal(packing.place[texts], np.arange(len(texts)))
        ends = np.cumsum(np.maximum(lengths[texts], 1))
        np.testing.assert_array_equal(packing.column[texts], [0, *ends[:-1]])
        assert ends[-1] <= 40
    assert packing.texts == packing.place.max() + 1
    # no two rows would fit into one, which bounds the rows by twice the least possible
    filled = np.sort(np.bincount(packing.row, np.maximum(lengths, 1)))
    assert packing.rows == 1 or filled[:2].sum() > 40


def test_rows_are_nearly_full() -> None:
    lengths = np.minimum(np.random.default_rng(0).geometric(0.04, size=(50, 128)) + 2, 128)
    packings = [pack(batch, 128) for batch in lengths]
    least = [-(-batch.sum() // 128) for batch in lengths]
    assert sum(p.rows for p in packings) <= sum(least) + 5


def test_a_text_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a text of 41 tokens does not fit a row of 40"):
        pack(np.array([3, 41]), 40)


def test_row_lengths() -> None:
    assert [round_up(n) for n in (1, 8, 9, 128, 129, 512, 513, 3000)] == [4, 8, 12, 128, 144, 512, 576, 3072]
    assert row_length(300, 5000) == 304  # the longest text decides
    assert row_length(30, 5000) == 128  # short texts, many of them
    assert row_length(30, 400) == 52  # a small batch still gets eight rows
    assert row_length(30, 40) == 32


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(1, 12)), st.integers(1, 3))
def test_the_row_counts_are_the_best_possible(needed: np.ndarray, shapes: int) -> None:
    def cost(counts: tuple[int, ...] | np.ndarray) -> int:
        counts = np.asarray(counts)
        return int(counts[np.searchsorted(counts, needed)].sum())

    chosen = choose_rows(needed, shapes)
    values = np.unique(needed)
    assert len(chosen) <= shapes
    options = itertools.combinations(values[:-1], min(shapes, len(values)) - 1)
    assert cost(chosen) == min(cost((*some, values[-1])) for some in options)


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 300))
def test_every_shard_and_piece_has_as_many_rows(rows: int, shards: int, at_once: int) -> None:
    division = RowDivision(shards, at_once)
    filled, pieces = division.fill(rows), division.pieces(rows)
    assert filled >= rows
    assert filled % (shards * pieces) == 0
    assert filled // pieces <= max(at_once, shards), "a piece has at most so many rows, or one for each shard"
    assert division.pieces(filled) == pieces, "the step sees the filled rows only"
    assert filled - rows < shards * pieces
    assert RowDivision(shards).pieces(rows) == 1


def test_small_pieces_leave_no_device_idle() -> None:
    """2,048 rows on 256 devices, 64 rows at once: 8 pieces of 256, not 32 pieces of which three quarters are empty."""
    assert (RowDivision(256, 64).pieces(2048), RowDivision(256, 64).fill(2048)) == (8, 2048)
    np.testing.assert_array_equal(RowDivision(8, 64).fill(np.array([5, 64, 65, 100])), [8, 64, 80, 112])
