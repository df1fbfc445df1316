"""The heads that learn from one target, and what their loss terms share: similarity matrices and the order of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jasper_jax.losses.geometry import Arrays, cosines, gram
from jasper_jax.losses.relative import PairOrder, pair_order, pairs


class HeadDim(NamedTuple):
    """The first ``dim`` components of a head's vectors."""

    head: str
    dim: int


class Comparison:
    """One target ``[B, T]``, without gradient, and the heads' vectors ``[B, E]``.

    ``nested`` and ``settings``: by head, as in ``HeadLoss``. ``batch`` holds what else terms compare by (of images
    ``same [B]``), ``learned`` the learned scalars of terms, by term. ``compared``: the heads with a term that is taken
    at every nested dimension; their similarity matrices are one stack, whichever terms use them.
    """

    def __init__(
        self,
        students: Mapping[str, Arrays],
        target: Arrays,
        nested: Mapping[str, tuple[int, ...]],
        settings: Mapping[str, Mapping[str, float]],
        compared: Sequence[str],
        batch: Mapping[str, Any],
        learned: Mapping[str, Any],
    ):
        self.students, self.target, self.batch, self.learned = students, target, batch, learned
        self.nested, self.settings = nested, settings
        self._compared = self.rows(compared)

    def rows(self, heads: Sequence[str]) -> list[HeadDim]:
        """One row per nested dimension of each head."""
        return [HeadDim(head, m) for head in heads for m in self.nested[head] or (self.students[head].shape[1],)]

    def similarities(self, rows: Sequence[HeadDim]) -> jax.Array:
        """Cosine similarities ``[rows, B, B]`` of the students."""
        if rows == self._compared:
            return self._stack
        return jnp.stack([self._stack[self._compared.index(row)] for row in rows])

    @cached_property
    def _stack(self) -> jax.Array:
        return cosines(jnp.stack([gram(self.students[head][:, :m]) for head, m in self._compared]))

    @cached_property
    def target_similarities(self) -> jax.Array:
        """Cosine similarities ``[B, B]`` of the target."""
        return cosines(gram(self.target))

    @cached_property
    def order(self) -> PairOrder:
        """The order of the target's pairs."""
        return pair_order(pairs(self.target_similarities))

    @staticmethod
    def by_head(values: Arrays, rows: Sequence[HeadDim]) -> dict[str, jax.Array]:
        """``[rows]`` -> the mean over the rows of each head."""
        return {
            head: jnp.mean(jnp.stack([value for value, row in zip(values, rows) if row.head == head]))
            for head in dict.fromkeys(row.head for row in rows)
        }
