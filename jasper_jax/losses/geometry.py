"""Rows of length 1, similarities of rows, pairs of rows: what the losses compare.

All arithmetic is float32 with `precision=HIGHEST`, or float64 for float64 inputs, whatever the type of the vectors: the
margin of the relative loss is 0.015, which bfloat16 similarities cannot resolve.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jasper_jax.losses.relative import PairOrder, pair_order, pairs
from jasper_jax.losses.relative_rows import by_rows
from jasper_jax.parameters.sharding import AXES, DATA, ROWS, WIDE, constrain

Arrays = jax.Array | np.ndarray


def normalize(x: Float[Arrays, "... E"], eps: float = 1e-12) -> Float[jax.Array, "... E"]:
    """Rows of length 1: x · rsqrt(max(Σx², eps)) along the last axis of `[..., E]`, in float32 or float64.

    A row of zeros stays zero, and its gradient is finite.
    """
    x = upcast(x)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))


def pair_similarities(x: Float[Arrays, "B E"]) -> Float[jax.Array, " P"]:
    """Cosine similarities `[P]` of the P = B(B-1)/2 pairs of rows of `x` `[B, E]`."""
    return pairs(cosines(gram(x)))


def teacher_order(teacher: Arrays) -> PairOrder:
    """The order of the teacher's pairs: computed once per batch from `[B, T]`, used by every head."""
    return pair_order(pair_similarities(teacher))


def upcast(x: Arrays) -> jax.Array:
    """`x` in float32, or in float64 where it is float64."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def gram(x: Float[Arrays, "B E"]) -> Float[jax.Array, "B B"]:
    """Products of all pairs of rows, `X Xᵀ`."""
    x = upcast(x)
    if by_rows(len(x), x.dtype):
        return _gram_by_rows(x)
    # The same on every device of a mesh, where the dimensions of x are divided and their products summed.
    return constrain(_products(x, x))


@jax.custom_vjp
def _gram_by_rows(x: jax.Array) -> jax.Array:
    """`gram`, of which each device has some rows: all of x goes to every device, instead of a sum of `[B, B]`."""
    return _gram_forward(x)[0]


def _gram_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = constrain(x)
    return constrain(_products(constrain(x, AXES), x), AXES), x


def _gram_backward(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    both = constrain(cotangent, AXES) + constrain(cotangent.T, AXES)
    return (constrain(constrain(_products(both, x.T), AXES), DATA, WIDE),)


_gram_by_rows.defvjp(_gram_forward, _gram_backward)


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("ie,je->ij", x, y, precision=lax.Precision.HIGHEST)


def cross_cosines(x: Float[Arrays, "B E"], y: Float[Arrays, "C E"]) -> Float[jax.Array, "B C"]:
    """Cosine similarities of the rows of ``x`` and those of ``y``, divided over the devices by rows of ``x``."""
    products = jnp.einsum("be,ce->bc", normalize(x), normalize(y), precision=lax.Precision.HIGHEST)
    return constrain(products, ROWS)


def cosines(grams: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Of `[..., B, B]` products of rows, what they would be after `normalize`: all dimensions in one step."""
    squares = jnp.sum(jnp.where(jnp.eye(grams.shape[-1], dtype=bool), grams, 0), axis=-1)
    scale = lax.rsqrt(jnp.maximum(squares, eps))
    return grams * (scale[..., :, None] * scale[..., None, :])
