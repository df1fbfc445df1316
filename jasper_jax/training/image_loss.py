"""The loss of a stage on images: each image's vectors against those of its own caption, on every head and dimension.

The caption's pooled vector comes from the cache (``training.captions``); the heads, which are frozen here, make the
targets of it. So a head and each of its nested dimensions takes all three losses, each against the caption's vector of
that very dimension (arXiv 2412.19048, section 2.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jasper_jax.losses import HeadLoss, distillation_losses, normalize, reduce_heads
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student


def sigmoid_loss(
    images: Float[jax.Array, "B E"],
    texts: Float[jax.Array, "B E"],
    same: Int[jax.Array, " B"],
    params: Mapping[str, jax.Array],
) -> Float[jax.Array, ""]:
    """Sum over the B×B pairs of ``-log σ(z (t x·y + b))``, over B; z = 1 where image and text belong together, else -1
    (arXiv 2303.15343, equation 1), on the global batch.

    ``same``: equal numbers belong together, as two images with one caption do. Rows are normalised here.
    """
    products = jnp.einsum("ie,je->ij", normalize(images), normalize(texts), precision=jax.lax.Precision.HIGHEST)
    logits = jnp.exp(params["log_scale"]) * products + params["bias"]
    sign = jnp.where(same[:, None] == same[None, :], 1.0, -1.0)
    return -jax.nn.log_sigmoid(sign * logits).sum() / len(images)


def make_image_loss(
    recipe: Recipe, stage: ResolvedStage, student: Student, pieces: int
) -> Callable[[Mapping[str, Any], Any, Mapping[str, Any], jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]:
    """``(params, (), batch, dropout key or None) -> (scalar, {"head/term": scalar})``.

    The batch (``data.image_batches``): ``pixels [R, S, S, 3]`` uint8, the first B rows images, the rest none;
    ``captions [B, D]`` pooled; ``same [B]``.
    """
    weights, contrastive = stage.losses, stage.settings.contrastive
    spec = {
        name: HeadLoss(weights.cosine, weights.similarity, weights.relative, weights.margin)
        for head in stage.heads
        for name in names_of(head, student.heads[head].dims)
    }

    def by_dimension(vectors: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {
            name: vectors[head][:, :dim]
            for head in stage.heads
            for name, dim in zip(names_of(head, student.heads[head].dims), student.heads[head].dims)
        }

    def loss(
        params: Mapping[str, Any], teachers: Any, batch: Mapping[str, Any], key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        captions = batch["captions"]
        pooled = student.pooled_images(params, batch["pixels"], key, pieces=pieces)[: len(captions)]
        images = by_dimension(student.project(params, pooled, stage.heads))
        texts = jax.lax.stop_gradient(by_dimension(student.project(params, captions, stage.heads)))
        terms = distillation_losses(images, texts, spec)
        if contrastive:
            for name, found in terms.items():
                found["contrastive"] = sigmoid_loss(images[name], texts[name], batch["same"], params["contrastive"])
                found["total"] = found["total"] + contrastive * found["contrastive"]
        return reduce_heads(terms, stage.reduce_heads), {
            f"{name}/{term}": value for name, found in terms.items() for term, value in found.items()
        }

    return loss


def names_of(head: str, dims: tuple[int, ...]) -> list[str]:
    """A head and its nested dimensions, as metrics call them."""
    return [head, *(f"{head}@{dim}" for dim in dims[1:])]
