"""The teachers' spaces that a student's vectors are in, where its queries find documents that a teacher embedded.

The concatenated teachers' vector is each teacher's, normalised, times the root of its weight, one after another,
normalised again (paper section 2.1). A head that learns it therefore has, in each teacher's columns, that teacher's
vector up to its length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jasper_jax.recipe.config import Recipe
from jasper_jax.student.heads import Arrays, Params
from jasper_jax.student.start import cosine_applies


@dataclasses.dataclass(frozen=True)
class Space:
    """The space of ``teachers``, concatenated if several: components ``start`` to ``stop`` of the vectors of ``head``,
    normalised again."""

    head: str
    teachers: tuple[str, ...]
    start: int
    stop: int

    @property
    def dim(self) -> int:
        return self.stop - self.start

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """``[n, E]`` of the head, or any array whose last axis is E -> its part in this space, not normalised."""
        return vectors[..., self.start : self.stop]

    def of_head(self, params: Params) -> dict[str, Arrays]:
        """Parameters of the head that makes that part alone."""
        return {name: x[..., self.start : self.stop] for name, x in params.items()}


def teacher_spaces(recipe: Recipe, heads: Iterable[str], dims: Mapping[str, int]) -> list[Space]:
    """The spaces of the first of ``heads`` that learns the teachers' own vectors (it takes the cosine loss): that of
    all teachers, then, if there are several, of each. ``dims``: the dimension of each teacher, in the recipe's order.
    [] where no head does."""
    whole = sum(dims.values())
    head = next((name for name in heads if dims and cosine_applies(recipe, name, whole)), None)
    if head is None:
        return []
    spaces = [Space(head, tuple(dims), 0, whole)]
    start = 0
    for teacher, dim in dims.items() if len(dims) > 1 else ():
        spaces.append(Space(head, (teacher,), start, start + dim))
        start += dim
    return spaces
