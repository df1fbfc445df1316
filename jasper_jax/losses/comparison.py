"""The heads that learn from one target, and what their loss terms share: similarity matrices, the order of pairs, and
the scores of queries' candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jasper_jax.losses.geometry import Arrays, cosines, cross_cosines, gram
from jasper_jax.losses.relative import PairOrder, pair_order, pairs


class HeadDim(NamedTuple):
    """The first ``dim`` components of a head's vectors."""

    head: str
    dim: int


class Comparison:
    """One target ``[B, T]``, without gradient, and the heads' vectors ``[B, E]``.

    ``nested`` and ``settings``: by head, as in ``HeadLoss``. ``batch`` holds what else terms compare by: of images
    ``same [B]``; of labelled pairs ``weights [Q]`` and ``answers [≥ Q, C]``: there the first Q texts are queries, the
    next C their candidates, candidate i answers query i, and ``answers`` is True at every known answer. ``learned``
    holds the learned scalars of terms, by term. ``compared``: the heads with a term that is taken at every nested
    dimension; their similarity matrices are one stack, whichever terms use them.
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
        self._scores: dict[HeadDim, jax.Array] = {}

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

    def queries(self, vectors: Arrays) -> Arrays:
        """The queries ``[Q, E]`` among the vectors of a batch of labelled pairs."""
        return vectors[: len(self.batch["weights"])]

    def candidates(self, vectors: Arrays) -> Arrays:
        """Their candidates ``[C, E]``."""
        first = len(self.batch["weights"])
        return vectors[first : first + self.batch["answers"].shape[1]]

    def scores(self, row: HeadDim) -> jax.Array:
        """Cosines ``[Q, C]`` of queries and candidates."""
        if row not in self._scores:
            vectors = self.students[row.head][:, : row.dim]
            self._scores[row] = cross_cosines(self.queries(vectors), self.candidates(vectors))
        return self._scores[row]

    @cached_property
    def target_scores(self) -> jax.Array:
        """Cosines ``[Q, C]`` of the target."""
        return cross_cosines(self.queries(self.target), self.candidates(self.target))

    @property
    def answers(self) -> jax.Array:
        """``[Q, C]``: True where the labels say that the candidate answers the query."""
        return self.batch["answers"][: len(self.batch["weights"])]

    @staticmethod
    def by_head(values: Arrays | Sequence[jax.Array], rows: Sequence[HeadDim]) -> dict[str, jax.Array]:
        """``[rows]`` -> the mean over the rows of each head."""
        return {
            head: jnp.mean(jnp.stack([value for value, row in zip(values, rows) if row.head == head]))
            for head in dict.fromkeys(row.head for row in rows)
        }
