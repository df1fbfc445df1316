"""Which rows of a shard have a vector: all, or those of a set of draws, as ledger and manifest record it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from jasper_jax.data import shards as sh
from jasper_jax.data.drawn import Draws, drawn_records


class Held(BaseModel):
    """Which rows of a shard have a vector: those that ``draws`` contain, ``vectors`` in number."""

    model_config = ConfigDict(strict=True, extra="forbid")

    draws: Draws
    vectors: sh.Count


_DRAWS = TypeAdapter(Draws)


def held_draws(entry: Mapping[str, Any]) -> Draws | None:
    """Whose vectors a shard has, as a manifest records it; None: all."""
    held = entry.get("held")
    return None if held is None else _DRAWS.validate_python(held["draws"])


def together(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One entry for several of the same file, each of which says the truth: with the draws of all."""
    draws = [held_draws(entry) for entry in entries]
    if None in draws:
        return dict(entries[draws.index(None)])
    union = functools.reduce(operator.or_, (one for one in draws if one is not None))
    return {**entries[0], "held": {**entries[0]["held"], "draws": union.as_json()}}


def holds(entry: Mapping[str, Any], draws: Draws | None) -> bool:
    """Whether a shard, as a manifest records it, has the vectors of ``draws``; None: of all its rows."""
    held = held_draws(entry)
    return held is None or (draws is not None and held.covers(draws))


def drawn_rows(draws: Draws | None, shard: sh.ShardInfo, size: int) -> np.ndarray:
    """``[rows]`` bool: which rows of a shard are drawn; all outside the training split, or where ``draws`` is None."""
    if draws is None or shard.split != sh.TRAIN:
        return np.ones(shard.rows, bool)
    return drawn_records(draws, size)[shard.start : shard.start + shard.rows]
