"""Which training records the stages of a recipe draw, known before any is drawn: vectors of other texts are not needed.

A set of draws is a few numbers, since the draws of a stage are the first ones of an order fixed by a seed
(``draw_order``). So it is compared and extended without listing records.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field

from jasper_jax.data.draw_order import DrawOrder, sample_records

_Pair = tuple[Annotated[int, Field(ge=0, lt=2**63)], Annotated[int, Field(ge=0)]]


@dataclass(frozen=True)
class Draws:
    """A set of draws from the training records of a store.

    ``ordered``: (seed, n), the first n draws of ``DrawOrder(size, seed)``. ``sampled``: (seed, n), the records of
    ``sample_records(size, n, seed)``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    ordered: tuple[_Pair, ...] = ()
    sampled: tuple[_Pair, ...] = ()

    def __or__(self, other: Draws) -> Draws:
        """All draws of both."""
        longest: dict[int, int] = {}
        for seed, n in (*self.ordered, *other.ordered):
            longest[seed] = max(n, longest.get(seed, 0))
        return Draws(tuple(sorted(longest.items())), tuple(sorted({*self.sampled, *other.sampled})))

    def covers(self, other: Draws) -> bool:
        """Whether these draws contain all of ``other``."""
        return self | other == self | Draws()

    def as_json(self) -> dict[str, Any]:
        return {"ordered": [list(pair) for pair in self.ordered], "sampled": [list(pair) for pair in self.sampled]}


_AT_ONCE = 1 << 24
"""Draws whose record numbers are held at once."""


@functools.lru_cache(maxsize=4)
def drawn_records(draws: Draws, size: int) -> np.ndarray:
    """``[size]`` bool: whether a record of a store of ``size`` training records is drawn. Not to be written to."""
    drawn = np.zeros(size, bool)
    for seed, n in draws.ordered:
        order, n = DrawOrder(size, seed), min(n, size)
        for start in range(0, n, _AT_ONCE):
            drawn[order.records(start, min(start + _AT_ONCE, n))] = True
    for seed, n in draws.sampled:
        drawn[sample_records(size, n, seed)] = True
    drawn.setflags(write=False)
    return drawn
