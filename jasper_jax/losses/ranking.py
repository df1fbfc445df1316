"""The teachers' ranking of each query's candidates: their softmax (``ranking``) or their margins (``margin``).

As in ``contrastive``, scores are cosines ``[B, C]`` and candidate i < B answers query i.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jasper_jax.losses.contrastive import own, weighted_mean
from jasper_jax.losses.geometry import Arrays


def ranking_loss(
    scores: Float[Arrays, "B C"],
    target_scores: Float[Arrays, "B C"],
    temperature: float = 0.05,
    weights: Float[Arrays, " B"] | None = None,
) -> Float[jax.Array, ""]:
    """Mean over the queries of ``KL(softmax(t_i/τ) ‖ softmax(s_i/τ))`` over their candidates (arXiv 2010.11386,
    equation 5). sentence-transformers' ``DistillKLDivLoss`` is τ² times this.

    Args:
      scores: the student's cosines `[B, C]`.
      target_scores: the teachers'; no gradient flows to them.
      temperature: τ of both, above 0.
      weights: of the queries; None: equal.
    """
    student = jax.nn.log_softmax(jnp.asarray(scores) / temperature, axis=1)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(jnp.asarray(target_scores)) / temperature, axis=1)
    return weighted_mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=1), weights)


def margin_loss(
    scores: Float[Arrays, "B C"],
    target_scores: Float[Arrays, "B C"],
    weights: Float[Arrays, " B"] | None = None,
) -> Float[jax.Array, ""]:
    """Mean over the queries, and over the candidates j other than their answers, of
    ``((s_ii - s_ij) - (t_ii - t_ij))²`` (Margin-MSE, arXiv 2010.02666, equation 8). 0 without other candidates."""
    scores, target_scores = jnp.asarray(scores), jax.lax.stop_gradient(jnp.asarray(target_scores))
    difference = scores - target_scores
    squares = jnp.square(jnp.diagonal(difference)[:, None] - difference)
    others = jnp.where(own(*scores.shape), 0.0, squares)
    return weighted_mean(jnp.sum(others, axis=1) / max(scores.shape[1] - 1, 1), weights)
