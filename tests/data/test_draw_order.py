"""The order of draws is the one that Grain gives, which runs begun with Grain's continue in."""

from __future__ import annotations

import grain
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jasper_jax.data.draw_order import DrawOrder


@settings(max_examples=200, deadline=None)
@given(
    size=st.one_of(st.integers(1, 300), st.integers(1, 1 << 40)),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 1 << 41),
    number=st.integers(0, 40),
)
@example(size=1, seed=0, first=0, number=3)
@example(size=2, seed=2**32 - 1, first=0, number=9)  # the seeds of epochs wrap around
@example(size=1 << 16, seed=3, first=(1 << 16) - 5, number=10)
@example(size=(1 << 16) + 1, seed=3, first=(1 << 16) - 5, number=10)  # the last record does not fit Grain's block
@example(size=(1 << 16) + 2, seed=3, first=(1 << 16) - 5, number=10)
@example(size=(1 << 17) + 1, seed=3, first=(1 << 17) - 5, number=10)
def test_draws_are_those_of_grain(size: int, seed: int, first: int, number: int) -> None:
    first %= 40 * size
    order = grain.MapDataset.range(size).shuffle(seed=seed).repeat(100)
    expected = [order[i] for i in range(first, first + number)]
    drawn = DrawOrder(size, seed).records(first, first + number)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("size", [7, 1000, 70_000])
def test_every_epoch_holds_every_record_once(size: int) -> None:
    epochs = DrawOrder(size, 5).records(0, 3 * size).reshape(3, size)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))
    assert (epochs[0] != epochs[1]).any()


def test_draws_do_not_depend_on_how_they_are_asked_for() -> None:
    order = DrawOrder(97, 2)
    one_by_one = np.concatenate([order.records(i, i + 1) for i in range(300)])
    np.testing.assert_array_equal(order.records(0, 300), one_by_one)
