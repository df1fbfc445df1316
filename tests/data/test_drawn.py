"""Sets of draws: the records they name, and how they grow."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.data import drawn
from jasper_jax.data.draw_order import DrawOrder, sample_records
from jasper_jax.data.drawn import Draws, drawn_records


def test_the_records_are_those_of_the_order_and_the_sample():
    draws = Draws(((3, 40), (7, 10)), ((0, 25),))
    expected = {*DrawOrder(200, 3).records(0, 40), *DrawOrder(200, 7).records(0, 10), *sample_records(200, 25, 0)}
    assert set(np.flatnonzero(drawn_records(draws, 200))) == expected
    assert not drawn_records(Draws(), 200).any()
    assert drawn_records(Draws(((3, 1000),)), 200).all()


def test_draws_are_taken_in_parts(monkeypatch) -> None:
    draws = Draws(((5, 61),))
    expected = drawn_records.__wrapped__(draws, 200)
    monkeypatch.setattr(drawn, "_AT_ONCE", 7)
    assert (drawn_records.__wrapped__(draws, 200) == expected).all()
    assert expected.sum() == 61


@pytest.mark.parametrize(
    ("more", "covered"),
    [
        (Draws(), True),
        (Draws(((3, 40),)), True),
        (Draws(((3, 39), (7, 1)), ((0, 25),)), True),
        (Draws(((3, 41),)), False),
        (Draws(((4, 1),)), False),
        (Draws((), ((0, 24),)), False),  # another sample, not a part of the one of 25
    ],
)
def test_draws_cover_what_they_contain(more, covered):
    draws = Draws(((3, 40), (7, 10)), ((0, 25),))
    assert draws.covers(more) == covered
    assert (draws | more).covers(more)
    assert (draws | more).covers(draws)
    union = drawn_records(draws, 200) | drawn_records(more, 200)
    np.testing.assert_array_equal(drawn_records(draws | more, 200), union)
