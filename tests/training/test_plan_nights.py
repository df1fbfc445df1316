"""How many hosts embed the texts of a recipe in a night, and what it costs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jasper_jax.training.plan_nights import Night, host_hours, nights_table


def planned(name: str, rate: float | None, longest: int = 512) -> Any:
    """A plan of a teacher that embeds ``rate`` tokens a second."""
    program = SimpleNamespace(stage=SimpleNamespace(name=name))
    return SimpleNamespace(target="8xh100", program=program, likely_tokens_per_second=rate, longest=longest)


def cells(table: Any) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns))]


def test_hours_hosts_and_cost_of_a_night() -> None:
    """8 million texts of 100 tokens at 20,000 tokens a second are 40,000 s, 11.1 hours."""
    plans = [planned("nv", 20_000.0), planned("stella", 200_000.0)]
    night = Night(hours=4, text_tokens=100, price=20)
    assert host_hours(plans[0], 8_000_000, night) == pytest.approx(40_000 / 3600)
    table = nights_table(plans, 8_000_000, night)
    assert "8,000,000 texts on hosts of 8xh100" in str(table.title)
    assert cells(table) == [
        ["nv", "0.80", "11.1", "3", "222"],
        ["stella", "0.80", "1.1", "1", "22"],
        ["all", "", "12.2", "4", "244"],
    ]


def test_texts_are_as_long_as_a_teacher_allows_unless_it_is_said() -> None:
    plan = planned("a", 1000.0)
    assert host_hours(plan, 3600, Night()) == pytest.approx(512 / 1000)
    assert cells(nights_table([plan], 3600, Night())) == [["a", "0.00", "0.5", "1"]]


def test_a_teacher_that_does_not_fit_has_no_hours() -> None:
    table = nights_table([planned("a", None), planned("b", 1000.0)], 3600, Night())
    assert cells(table) == [["a", "0.00", "does not fit", ""], ["b", "0.00", "0.5", "1"]]
