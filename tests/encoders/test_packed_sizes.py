"""Batches packed in lockstep need the rows, and fill them with the texts, that packing each of them does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jasper_jax.encoders.packed_sizes import packed_sizes
from jasper_jax.encoders.packing import pack


def check_sizes(lengths: np.ndarray, row: int) -> None:
    rows, texts = packed_sizes(lengths, row)
    packings = [pack(batch, row) for batch in lengths]
    np.testing.assert_array_equal(rows, [packing.rows for packing in packings])
    np.testing.assert_array_equal(texts, [packing.texts for packing in packings])


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Token counts ``[K, B]`` with many or few equal ones, and a row length that holds the longest."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 80)))
    longest = draw(st.sampled_from([1, 3, 12, 60, 500, 3 << 28]))
    lengths = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, longest)))
    return lengths, max(1, int(lengths.max())) + draw(st.integers(0, 2 * longest))


@settings(max_examples=500, deadline=None)
@given(batches())
def test_sizes_are_those_of_packing_each_batch(drawn: tuple[np.ndarray, int]) -> None:
    check_sizes(*drawn)


@pytest.mark.parametrize(("size", "row", "mean"), [(700, 128, 25), (300, 512, 200), (1500, 2000, 30)])
def test_sizes_of_many_texts_in_more_batches_than_run_in_lockstep(size: int, row: int, mean: int, monkeypatch) -> None:
    monkeypatch.setattr("jasper_jax.encoders.packed_sizes._IN_LOCKSTEP", 7)
    check_sizes(np.minimum(np.random.default_rng(size).geometric(1 / mean, (16, size)), row), row)


def test_batches_that_end_at_different_times_and_rows_all_alike() -> None:
    lengths = np.array([[5] * 12, list(range(1, 13)), [12] * 12, [0] * 12])
    for row in (12, 13, 24, 25):
        check_sizes(lengths, row)


def test_a_text_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="a text of 41 tokens does not fit a row of 40"):
        packed_sizes(np.array([[3, 41]]), 40)
