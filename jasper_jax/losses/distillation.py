"""The three distillation losses (section 2.3 of arXiv 2412.19048) and their weighted sum per head.

All arithmetic here is float32 with `precision=HIGHEST`, or float64 for float64 inputs, whatever the type of
the vectors: the margin of the relative loss is 0.015, which bfloat16 similarities cannot resolve.

In a train step, `distillation_losses` takes every head at once: the similarity matrix and the order of a
teacher are computed once, however many heads and nested dimensions learn from it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jasper_jax.losses.relative import PairOrder, pair_order, pairs, relative_from_similarities
from jasper_jax.parameters.sharding import constrain

Arrays = jax.Array | np.ndarray
REDUCTIONS = ("sum", "mean")


def normalize(x: Float[Arrays, "... E"], eps: float = 1e-12) -> Float[jax.Array, "... E"]:
    """Rows of length 1: x · rsqrt(max(Σx², eps)) along the last axis of `[..., E]`, in float32 or float64.

    A row of zeros stays zero, and its gradient is finite.
    """
    x = _upcast(x)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))


def cosine_loss(student: Arrays, teacher: Arrays) -> Float[jax.Array, ""]:
    """Mean over the batch of 1 - s·t, the rows normalised (equation 1, with the mean for its sum).

    Args:
      student: `[B, E]`.
      teacher: `[B, E]`.

    Returns:
      A scalar between 0 and 2.

    Raises:
      ValueError: the shapes are not equal, not two-dimensional, or the batch is empty.
    """
    _check(student, teacher, same_dimension=True)
    return _cosine(normalize(student), normalize(teacher))


def similarity_loss(student: Arrays, teacher: Arrays) -> Float[jax.Array, ""]:
    """Mean over the B×B entries of (S Sᵀ - T Tᵀ)², the rows normalised (equation 2).

    Args:
      student: `[B, E]`.
      teacher: `[B, T]`.

    Returns:
      A scalar; 0 with zero gradient when there are fewer than two texts.

    Raises:
      ValueError: the batch sizes differ, or an input is not two-dimensional or empty.
    """
    _check(student, teacher)
    return _similarity(_cosines(_gram(student)), _cosines(_gram(teacher)))


def relative_loss(
    student: Arrays, teacher: Arrays, margin: float = 0.015, *, method: str = "auto"
) -> Float[jax.Array, ""]:
    """Mean over pairs of pairs p, q with t_p > t_q of max(0, s_q - s_p + margin) (equation 3).

    A pair p is two different texts i < j of the batch, s_p = s_i·s_j, t_p = t_i·t_j, the rows normalised. Two
    pairs with equal teacher similarity have no order: they add 0 and count in the mean. No gradient
    flows to the teacher, of which only the order matters.

    Args:
      student: `[B, E]`.
      teacher: `[B, T]`.
      margin: in units of cosine similarity.
      method: how to count, see `jasper_jax.losses.relative.relative_from_similarities`.

    Returns:
      A scalar; 0 with zero gradient when there are fewer than two pairs, that is B < 3.

    Raises:
      ValueError: the batch sizes differ, or an input is not two-dimensional or empty.
    """
    _check(student, teacher)
    order = teacher_order(teacher)
    return relative_from_similarities(pair_similarities(student)[None], order, margin, method)[0]


def pair_similarities(x: Float[Arrays, "B E"]) -> Float[jax.Array, " P"]:
    """Cosine similarities `[P]` of the P = B(B-1)/2 pairs of rows of `x` `[B, E]`."""
    return pairs(_cosines(_gram(x)))


def teacher_order(teacher: Arrays) -> PairOrder:
    """The order of the teacher's pairs: computed once per batch from `[B, T]`, used by every head."""
    return pair_order(pair_similarities(teacher))


@dataclass(frozen=True)
class HeadLoss:
    """What one head is trained with. A weight of 0 means the term is not computed.

    `nested` lists the dimensions m at which the similarity and relative losses are taken, each on the first m
    components, re-normalised; the loss is their mean. The list is used as it is: it holds the full dimension
    if that is to count. Empty means the full vector alone. The cosine loss is always on the full vector.
    """

    cosine: float = 10.0
    similarity: float = 200.0
    relative: float = 20.0
    margin: float = 0.015
    nested: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cosine", "similarity", "relative", "margin"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if any(m < 1 for m in self.nested) or len(set(self.nested)) < len(self.nested):
            raise ValueError(f"nested: expected different dimensions of at least 1, got {self.nested}")


def distillation_losses(
    students: Mapping[str, Arrays],
    targets: Mapping[str, Arrays],
    spec: Mapping[str, HeadLoss],
    orders: Mapping[str, PairOrder] | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """The losses of every head, each against its own target.

    Heads whose targets are the same array object share its similarity matrix and its order, and all of their
    nested dimensions go through one relative-similarity call. Targets are constants, no gradient flows to
    them: another head's vectors may be given as they are (self-distillation).

    Args:
      students: by head, `[B, E]`; B is the same for all.
      targets: by head, `[B, T]`; T = E where the cosine loss is used.
      spec: by head.
      orders: by head, the order of its target where the caller has it from `teacher_order`; missing ones are
        computed. Heads that share a target share the order given for any of them.

    Returns:
      By head, scalars: the terms it uses, unweighted, under `"cosine"`, `"similarity"`, `"relative"`, and
      their weighted sum under `"total"`.

    Raises:
      ValueError: the heads of the arguments differ, or shapes do not fit; the message names the head.
    """
    orders = orders or {}
    _check_heads(students, targets, spec, orders)
    shared: dict[int, list[str]] = {}  # heads by the identity of their target
    for head in spec:
        shared.setdefault(id(targets[head]), []).append(head)
    terms: dict[str, dict[str, jax.Array]] = {head: {} for head in spec}
    for heads in shared.values():
        target = lax.stop_gradient(targets[heads[0]])
        order = next((orders[head] for head in heads if head in orders), None)
        _add_terms(terms, heads, students, target, spec, order)
    for head, found in terms.items():
        weighted = [getattr(spec[head], name) * term for name, term in found.items()]
        found["total"] = functools.reduce(jnp.add, weighted, jnp.float32(0))
    return terms


def _add_terms(
    terms: dict[str, dict[str, jax.Array]],
    heads: Sequence[str],
    students: Mapping[str, Arrays],
    target: Arrays,
    spec: Mapping[str, HeadLoss],
    order: PairOrder | None,
) -> None:
    """Fill in the terms of the heads that have this target."""
    for head in heads:
        if spec[head].cosine:
            terms[head]["cosine"] = _cosine(normalize(students[head]), normalize(target))
    # From here on one row per nested dimension of each head.
    rows = [
        (head, m)
        for head in heads
        if spec[head].similarity or spec[head].relative
        for m in spec[head].nested or (students[head].shape[1],)
    ]
    if not rows:
        return
    similarities = _cosines(jnp.stack([_gram(students[head][:, :m]) for head, m in rows]))
    target_similarities = _cosines(_gram(target))
    if any(spec[head].similarity for head, _ in rows):
        values = _similarity(similarities, target_similarities)
        for head in heads:
            if spec[head].similarity:
                terms[head]["similarity"] = _mean_of_rows(values, rows, head)
    ranked = [index for index, (head, _) in enumerate(rows) if spec[head].relative]
    if ranked:
        rows = [rows[index] for index in ranked]
        margins = jnp.asarray([spec[head].margin for head, _ in rows], similarities.dtype)
        order = pair_order(pairs(target_similarities)) if order is None else order
        if len(ranked) < len(similarities):
            similarities = jnp.stack([similarities[index] for index in ranked])
        values = relative_from_similarities(pairs(similarities), order, margins)
        for head in heads:
            if spec[head].relative:
                terms[head]["relative"] = _mean_of_rows(values, rows, head)


def _mean_of_rows(values: Arrays, rows: Sequence[tuple[str, int]], head: str) -> jax.Array:
    return jnp.mean(jnp.stack([value for value, row in zip(values, rows) if row[0] == head]))


def reduce_heads(terms: Mapping[str, Mapping[str, Arrays]], how: str) -> Float[jax.Array, ""]:
    """The `"sum"` or `"mean"` over heads of their totals: a scalar, the loss to differentiate."""
    if how not in REDUCTIONS:
        raise ValueError(f"reduce_heads: {how!r} is not one of {', '.join(REDUCTIONS)}")
    totals = jnp.stack([found["total"] for found in terms.values()])
    return jnp.sum(totals) if how == "sum" else jnp.mean(totals)


def _upcast(x: Arrays) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _gram(x: Float[Arrays, "B E"]) -> Float[jax.Array, "B B"]:
    x = _upcast(x)
    # The same on every device of a mesh, where the dimensions of x are divided and their products summed.
    return constrain(jnp.einsum("ie,je->ij", x, x, precision=lax.Precision.HIGHEST))


def _cosines(grams: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Of `[..., B, B]` products of rows, what they would be after `normalize`: all dimensions in one step."""
    squares = jnp.sum(jnp.where(jnp.eye(grams.shape[-1], dtype=bool), grams, 0), axis=-1)
    scale = lax.rsqrt(jnp.maximum(squares, eps))
    return grams * (scale[..., :, None] * scale[..., None, :])


def _cosine(student: Arrays, teacher: Arrays) -> jax.Array:
    return jnp.mean(1 - jnp.sum(student * teacher, axis=-1))


def _similarity(student: Arrays, teacher: Arrays) -> jax.Array:
    """Of similarity matrices `[..., B, B]` and `[B, B]`."""
    if student.shape[-1] < 2:
        return jnp.zeros(student.shape[:-2], student.dtype)
    return jnp.mean(jnp.square(student - teacher), axis=(-2, -1))


def _check(student: Arrays, teacher: Arrays, *, same_dimension: bool = False, where: str = "") -> None:
    shapes = f"{where}student {student.shape}, teacher {teacher.shape}"
    if student.ndim != 2 or teacher.ndim != 2:
        raise ValueError(f"{shapes}: expected two axes, [B, E] and [B, T]")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"{shapes}: the batch sizes differ")
    if 0 in student.shape or 0 in teacher.shape:
        raise ValueError(f"{shapes}: there is nothing to compare")
    if same_dimension and student.shape != teacher.shape:
        raise ValueError(f"{shapes}: the cosine loss needs equal shapes; set its weight to 0 or change the target")


def _check_heads(
    students: Mapping[str, Arrays],
    targets: Mapping[str, Arrays],
    spec: Mapping[str, HeadLoss],
    orders: Mapping[str, PairOrder],
) -> None:
    if not (set(students) == set(targets) == set(spec)) or not set(orders) <= set(spec):
        found = f"students {sorted(students)}, targets {sorted(targets)}, spec {sorted(spec)}"
        raise ValueError(f"{found}, orders {sorted(orders)}: the heads differ")
    for head, wanted in spec.items():
        student, where = students[head], f"head {head!r}: "
        _check(student, targets[head], same_dimension=wanted.cosine > 0, where=where)
        if any(m > student.shape[1] for m in wanted.nested):
            raise ValueError(f"{where}nested {wanted.nested} reaches beyond the student's {student.shape}")
    if len({student.shape[0] for student in students.values()}) > 1:
        shapes = {head: student.shape for head, student in students.items()}
        raise ValueError(f"students {shapes}: the batch sizes differ")
