"""The three distillation losses of the paper (section 2.3 of arXiv 2412.19048): functions of two batches of vectors.

A train step takes them through `jasper_jax.losses.per_head`, where all heads share what can be shared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jasper_jax.losses.geometry import Arrays, cosines, gram, normalize, pair_similarities, teacher_order
from jasper_jax.losses.relative import relative_from_similarities


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
    check_shapes(student, teacher, same_dimension=True)
    return jnp.mean(1 - jnp.sum(normalize(student) * normalize(teacher), axis=-1))


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
    check_shapes(student, teacher)
    return squared_difference(cosines(gram(student)), cosines(gram(teacher)))


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
    check_shapes(student, teacher)
    order = teacher_order(teacher)
    return relative_from_similarities(pair_similarities(student)[None], order, margin, method)[0]


def squared_difference(student: Arrays, teacher: Arrays) -> jax.Array:
    """Mean squared difference of similarity matrices `[..., B, B]` and `[B, B]`: `[...]`; 0 below two texts."""
    if student.shape[-1] < 2:
        return jnp.zeros(student.shape[:-2], student.dtype)
    return jnp.mean(jnp.square(student - teacher), axis=(-2, -1))


def check_shapes(student: Arrays, teacher: Arrays, *, same_dimension: bool = False, where: str = "") -> None:
    """ValueError when `[B, E]` and `[B, T]` do not fit each other; ``where`` begins its message."""
    shapes = f"{where}student {student.shape}, teacher {teacher.shape}"
    if student.ndim != 2 or teacher.ndim != 2:
        raise ValueError(f"{shapes}: expected two axes, [B, E] and [B, T]")
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"{shapes}: the batch sizes differ")
    if 0 in student.shape or 0 in teacher.shape:
        raise ValueError(f"{shapes}: there is nothing to compare")
    if same_dimension and student.shape != teacher.shape:
        raise ValueError(f"{shapes}: the cosine loss needs equal shapes; set its weight to 0 or change the target")
