"""The table of loss terms. A new term is one function and one row here.

The recipe takes from it the keys of ``losses`` and their defaults, ``jasper check`` and the metrics the names, the
stages the learned numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jasper_jax.losses import sigmoid
from jasper_jax.losses.comparison import Comparison
from jasper_jax.losses.distillation import cosine_loss, squared_difference
from jasper_jax.losses.relative import pairs, relative_from_similarities

Values = dict[str, jax.Array]
"""Head -> scalar."""


@dataclass(frozen=True)
class Term:
    """One loss term.

    ``function``: ``(comparison, heads)`` -> a scalar for each of the heads, which are those that use the term.
    ``weight``: in a recipe that does not say one; a term of weight 0 is not computed.
    ``settings``: further numbers of the term and their defaults, keys of ``losses`` beside the weight.
    ``learned``: scalars that are trained with the student, and their values at the start.
    ``nested``: taken at every nested dimension of a head, and averaged; else at the full vector alone.
    ``same_dimension``: the target must have as many dimensions as the head.
    ``stages``: the kinds of stage that it is for; None: all.
    """

    function: Callable[[Comparison, Sequence[str]], Values]
    weight: float
    settings: Mapping[str, float] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    nested: bool = True
    same_dimension: bool = False
    stages: tuple[str, ...] | None = None


def _cosine(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 1 on the full vectors."""
    return {head: cosine_loss(comparison.students[head], comparison.target) for head in heads}


def _similarity(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 2 at each dimension."""
    rows = comparison.rows(heads)
    return comparison.by_head(squared_difference(comparison.similarities(rows), comparison.target_similarities), rows)


def _relative(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 3 at each dimension, all in one call: they share the order of the teacher's pairs."""
    rows = comparison.rows(heads)
    similarities = comparison.similarities(rows)
    margins = jnp.asarray([comparison.settings[row.head]["margin"] for row in rows], similarities.dtype)
    return comparison.by_head(relative_from_similarities(pairs(similarities), comparison.order, margins), rows)


def _sigmoid(comparison: Comparison, heads: Sequence[str]) -> Values:
    """arXiv 2303.15343 on the full vectors."""
    same, learned = comparison.batch["same"], comparison.learned["sigmoid"]
    return {head: sigmoid.sigmoid_loss(comparison.students[head], comparison.target, same, learned) for head in heads}


TERMS: dict[str, Term] = {
    "cosine": Term(_cosine, 10.0, nested=False, same_dimension=True),
    "similarity": Term(_similarity, 200.0),
    "relative": Term(_relative, 20.0, settings={"margin": 0.015}),
    "sigmoid": Term(_sigmoid, 0.0, learned=sigmoid.START, nested=False, same_dimension=True, stages=("images",)),
}
"""In the order in which they are added up."""
