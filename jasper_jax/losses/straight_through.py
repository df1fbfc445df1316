"""Vectors rounded as an index will keep them, with the gradient of vectors that are not (arXiv 1308.3432).

The rounding is that of ``encoders.quantization``, whose codes have the same cosines.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jasper_jax.losses.geometry import Arrays

ROUNDED = ("int8", "binary")


def straight_through(vectors: Float[Arrays, "B E"], precision: str) -> Float[jax.Array, "B E"]:
    """``vectors`` in ``precision``; their gradient is passed on as it is.

    int8: each component to the nearest of 253 values, a 126th of the batch's largest magnitude apart. binary: its sign,
    times the vector's mean magnitude. Cosines with the rounded vectors are those of an index of codes; a nested
    dimension of them is that dimension rounded.

    Raises:
      ValueError: another precision.
    """
    vectors = jnp.asarray(vectors)
    fixed = jax.lax.stop_gradient(vectors)
    if precision == "int8":
        step = jnp.maximum(jnp.abs(fixed).max(), 1e-12) / 126
        rounded = jnp.round(fixed / step) * step
    elif precision == "binary":
        rounded = jnp.where(fixed > 0, 1.0, -1.0) * jnp.abs(fixed).mean(axis=1, keepdims=True)
    else:
        raise ValueError(f"precision is {precision!r}; expected {' or '.join(ROUNDED)}")
    return vectors + (rounded - fixed)
