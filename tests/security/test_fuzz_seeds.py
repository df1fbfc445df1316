"""Cases of ``scripts/bench/fuzz.py``: those that found something once, and the first of each kind. Recipes are those of
``tests/test_fuzz.py``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.security.fuzz_cases import KINDS

FOUND: dict[str, tuple[int, ...]] = {
    "data_sets": (1, 2, 3, 6, 7, 600291),
    "tokenizers": (57,),
    "pairs": (834260, 837436),
    "records": (1041, 820300, 832844),
    "vectors": (833758,),
    "models": (810623, 811066),
}
"""Kind -> numbers of cases that were not read or refused in one line."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, number) for kind in KINDS if kind != "recipes" for number in (0, *FOUND.get(kind, ()))]
)
def test_it_is_read_or_refused_in_a_line(kind: str, number: int, place: Path) -> None:
    KINDS[kind](random.Random(f"{kind}/{number}"), place)
