"""The losses of all heads of a step at once.

The similarity matrix and the order of a target are computed once, however many heads and nested dimensions learn from
it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from jasper_jax.losses.comparison import Comparison
from jasper_jax.losses.distillation import check_shapes
from jasper_jax.losses.geometry import Arrays
from jasper_jax.losses.terms import TERMS

REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True, init=False)
class HeadLoss:
    """What one head is trained with: ``HeadLoss(cosine=0, margin=0.02, nested=(256, 128))``.

    ``weights`` of the terms (``jasper_jax.losses.terms``) and ``settings`` of them (the margin) default to the table's;
    a term of weight 0 is not computed. ``nested`` lists the dimensions m at which terms on similarities are taken, each
    on the first m components, re-normalised; the term is their mean. The list is used as it is: it holds the full
    dimension if that is to count. Empty means the full vector alone.

    Raises:
      TypeError: a name that is neither a term nor a setting.
      ValueError: a number that is negative or not finite, dimensions below 1 or named twice.
    """

    weights: Mapping[str, float]
    settings: Mapping[str, float]
    nested: tuple[int, ...]

    def __init__(self, *, nested: tuple[int, ...] = (), **values: float):
        weights = {name: term.weight for name, term in TERMS.items()}
        settings = {name: default for term in TERMS.values() for name, default in term.settings.items()}
        for name, value in values.items():
            if name not in weights and name not in settings:
                raise TypeError(f"{name}: expected one of {', '.join([*weights, *settings])}")
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
            (weights if name in weights else settings)[name] = value
        if any(m < 1 for m in nested) or len(set(nested)) < len(nested):
            raise ValueError(f"nested: expected different dimensions of at least 1, got {nested}")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "nested", nested)

    @property
    def terms(self) -> list[str]:
        """The terms with a weight."""
        return [name for name, weight in self.weights.items() if weight]


def distillation_losses(
    students: Mapping[str, Arrays],
    targets: Mapping[str, Arrays],
    spec: Mapping[str, HeadLoss],
    *,
    batch: Mapping[str, Any] | None = None,
    learned: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """The losses of every head, each against its own target.

    Heads whose targets are the same array object share its similarity matrix and its order, and all of their
    nested dimensions go through one relative-similarity call. Targets are constants, no gradient flows to
    them: another head's vectors may be given as they are (self-distillation).

    Args:
      students: by head, `[B, E]`; B is the same for all.
      targets: by head, `[B, T]`; T = E where a term needs it.
      spec: by head.
      batch: what else of the batch a term compares by.
      learned: the learned scalars of terms, by term.

    Returns:
      By head, scalars: the terms it uses, unweighted, by name, and their weighted sum under `"total"`.

    Raises:
      ValueError: the heads of the arguments differ, or shapes do not fit; the message names the head.
    """
    _check_heads(students, targets, spec)
    by_target: dict[int, list[str]] = {}
    for head in spec:
        by_target.setdefault(id(targets[head]), []).append(head)
    losses: dict[str, dict[str, jax.Array]] = {head: {} for head in spec}
    for heads in by_target.values():
        comparison = Comparison(
            students,
            lax.stop_gradient(targets[heads[0]]),
            {head: spec[head].nested for head in heads},
            {head: spec[head].settings for head in heads},
            [head for head in heads if any(TERMS[name].nested for name in spec[head].terms)],
            batch or {},
            learned or {},
        )
        for name, term in TERMS.items():
            if users := [head for head in heads if spec[head].weights[name]]:
                for head, value in term.function(comparison, users).items():
                    losses[head][name] = value
    for head, values in losses.items():
        weighted = [spec[head].weights[name] * value for name, value in values.items()]
        values["total"] = functools.reduce(jnp.add, weighted, jnp.float32(0))
    return losses


def reduce_heads(losses: Mapping[str, Mapping[str, Arrays]], how: str) -> Float[jax.Array, ""]:
    """The `"sum"` or `"mean"` over heads of their totals: a scalar, the loss to differentiate."""
    if how not in REDUCTIONS:
        raise ValueError(f"reduce_heads: {how!r} is not one of {', '.join(REDUCTIONS)}")
    totals = jnp.stack([values["total"] for values in losses.values()])
    return jnp.sum(totals) if how == "sum" else jnp.mean(totals)


def named_terms(losses: Mapping[str, Mapping[str, jax.Array]]) -> dict[str, jax.Array]:
    """``{"head/term": scalar}``, as metrics call them."""
    return {f"{head}/{name}": value for head, values in losses.items() for name, value in values.items()}


def _check_heads(students: Mapping[str, Arrays], targets: Mapping[str, Arrays], spec: Mapping[str, HeadLoss]) -> None:
    if not set(students) == set(targets) == set(spec):
        given = f"students {sorted(students)}, targets {sorted(targets)}, spec {sorted(spec)}"
        raise ValueError(f"{given}: the heads differ")
    for head, wanted in spec.items():
        student, where = students[head], f"head {head!r}: "
        same_dimension = any(TERMS[name].same_dimension for name in wanted.terms)
        check_shapes(student, targets[head], same_dimension=same_dimension, where=where)
        if any(m > student.shape[1] for m in wanted.nested):
            raise ValueError(f"{where}nested {wanted.nested} reaches beyond the student's {student.shape}")
    if len({student.shape[0] for student in students.values()}) > 1:
        shapes = {head: student.shape for head, student in students.items()}
        raise ValueError(f"students {shapes}: the batch sizes differ")
