"""The sigmoid image-text loss (arXiv 2303.15343, SigLIP): beside the distillation losses, not one of the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jasper_jax.losses.geometry import Arrays, normalize

START = {"log_scale": math.log(10.0), "bias": -10.0}
"""Its two learned numbers before training: the logarithm of t, and b (section 3.2)."""


def sigmoid_loss(
    images: Float[Arrays, "B E"],
    texts: Float[Arrays, "B E"],
    same: Int[Arrays, " B"],
    params: Mapping[str, Arrays],
) -> Float[jax.Array, ""]:
    """Sum over the B×B pairs of ``-log σ(z (t x·y + b))``, over B; z = 1 where image and text belong together, else -1
    (equation 1), on the global batch.

    Args:
      images: `[B, E]`, normalised here.
      texts: `[B, E]`, normalised here.
      same: `[B]`; equal numbers belong together, as two images with one caption do.
      params: ``log_scale`` and ``bias``, scalars.
    """
    products = jnp.einsum("ie,je->ij", normalize(images), normalize(texts), precision=jax.lax.Precision.HIGHEST)
    logits = jnp.exp(params["log_scale"]) * products + params["bias"]
    sign = jnp.where(same[:, None] == same[None, :], 1.0, -1.0)
    return -jax.nn.log_sigmoid(sign * logits).sum() / len(images)
