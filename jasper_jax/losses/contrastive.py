"""InfoNCE over labelled pairs, with false negatives masked: relevance beside the distillation losses.

A batch has B queries and C candidates. Candidate i < B is the passage that answers query i; all others are negatives of
it. Scores are cosines ``[B, C]``; an array ``[B, C, E]`` never exists.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from jasper_jax.losses.geometry import Arrays, cosines, cross_cosines, gram

START = {"log_scale": 0.0}
"""The learned number before training: the logarithm of a factor on 1/temperature."""


def contrastive_loss(
    queries: Float[Arrays, "B E"],
    candidates: Float[Arrays, "C E"],
    temperature: Arrays | float = 0.05,
    *,
    masked: Bool[Arrays, "B C"] | None = None,
    weights: Float[Arrays, " B"] | None = None,
) -> Float[jax.Array, ""]:
    """InfoNCE (arXiv 1807.03748, equation 4), the weighted mean over the queries i of
    ``-s_ii/τ + log(exp(s_ii/τ) + Σ_j exp(s_ij/τ))``, j over the candidates other than i that are not masked.

    With :func:`false_negatives` as ``masked`` it is the loss of GISTEmbed (arXiv 2402.16829).

    Args:
      queries: `[B, E]`, normalised here.
      candidates: `[C, E]`, C ≥ B; the first B answer the queries in their order.
      temperature: τ, above 0.
      masked: negatives to leave out; a query's own answer stays whatever is said of it.
      weights: of the queries; None: equal.

    Raises:
      ValueError: there are fewer candidates than queries.
    """
    if candidates.shape[0] < queries.shape[0]:
        raise ValueError(f"queries {queries.shape}, candidates {candidates.shape}: expected an answer for each query")
    scores = cross_cosines(queries, candidates)
    return info_nce(scores, own(*scores.shape) if masked is None else masked, 1 / jnp.asarray(temperature), weights)


def info_nce(
    scores: Float[Arrays, "B C"],
    masked: Bool[Arrays, "B C"],
    scale: Arrays | float,
    weights: Float[Arrays, " B"] | None = None,
) -> Float[jax.Array, ""]:
    """:func:`contrastive_loss` of cosines ``[B, C]``; ``scale``: 1/τ."""
    logits = scores * scale
    answer = jnp.diagonal(logits)
    kept = jnp.where(jnp.asarray(masked) & ~own(*scores.shape), -jnp.inf, logits)
    return weighted_mean(jax.nn.logsumexp(kept, axis=1) - answer, weights)


def false_negatives(
    target_scores: Float[Arrays, "B C"], answer: Float[Arrays, " B"], margin: float = 0.0
) -> Bool[jax.Array, "B C"]:
    """Where the target puts a candidate above the query's answer minus ``margin``: probably an answer itself (arXiv
    2402.16829, section 3.2)."""
    return jnp.asarray(target_scores) > (jnp.asarray(answer) - margin)[:, None]


def spread_loss(vectors: Float[Arrays, "B E"]) -> Float[jax.Array, ""]:
    """Mean squared cosine of two different rows: the spread-out regulariser (arXiv 1708.06320; as in EmbeddingGemma,
    arXiv 2509.20354, section 2.2). 0 below two rows."""
    count = vectors.shape[0]
    squares = jnp.square(jnp.where(jnp.eye(count, dtype=bool), 0.0, cosines(gram(vectors))))
    return jnp.sum(squares) / max(count * (count - 1), 1)


def own(queries: int, candidates: int) -> Bool[jax.Array, "B C"]:
    """True at each query's own answer, candidate i of query i."""
    return jnp.arange(queries)[:, None] == jnp.arange(candidates)[None, :]


def weighted_mean(values: Float[Arrays, " B"], weights: Float[Arrays, " B"] | None) -> Float[jax.Array, ""]:
    """Mean of ``[B]`` values, by ``weights`` of a positive sum where they are given."""
    if weights is None:
        return jnp.mean(values)
    return jnp.sum(values * weights) / jnp.sum(weights)
