"""Resampling as products with constant matrices, equal to PyTorch's: image tokens by adaptive average pooling
(Jasper's image path, arXiv 2412.19048), tables of positions by bicubic interpolation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

_A = -0.75  # the cubic convolution's parameter in PyTorch


def pooling_matrix(inputs: int, outputs: int) -> Float[np.ndarray, "n T"]:
    """``[outputs, inputs]``: row i weighs the inputs from ⌊i·T/n⌋ to ⌈(i+1)·T/n⌉ equally; n may exceed T."""
    i = np.arange(outputs, dtype=np.int64)
    start, stop = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
    j = np.arange(inputs)
    inside = (j >= start[:, None]) & (j < stop[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float64)


def adaptive_pool(x: Float[jax.Array, "*N T C"], tokens: int, width: int) -> Float[jax.Array, "*N n D"]:
    """``[..., T, C]`` -> ``[..., tokens, width]``, at least float32; an axis that has its size is left alone."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    T, C = x.shape[-2:]
    if tokens != T:
        x = jnp.einsum("...tc,nt->...nc", x, pooling_matrix(T, tokens).astype(x.dtype), precision="highest")
    if width != C:
        x = jnp.einsum("...nc,dc->...nd", x, pooling_matrix(C, width).astype(x.dtype), precision="highest")
    return x


@functools.lru_cache(maxsize=16)
def bicubic_matrix(inputs: int, outputs: int) -> np.ndarray:
    """``[outputs, inputs]`` weights along one axis: half-pixel centres, four taps, edges repeated, no antialiasing."""
    source = (np.arange(outputs) + 0.5) * inputs / outputs - 0.5
    first = np.floor(source).astype(int)
    matrix = np.zeros((outputs, inputs))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(source - (first + tap))
        near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
        far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
        np.add.at(
            matrix,
            (np.arange(outputs), np.clip(first + tap, 0, inputs - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix.astype(np.float32)


def resized(table: jax.Array, side: int) -> jax.Array:
    """``[s·s, D]`` positions of a square grid -> ``[side·side, D]``, float32; the same table where the sides agree."""
    rows, D = table.shape
    s = round(rows**0.5)
    if s == side:
        return table
    matrix = jnp.asarray(bicubic_matrix(s, side))
    grid = table.astype(jnp.float32).reshape(s, s, D)
    return jnp.einsum("hi,wj,ijd->hwd", matrix, matrix, grid, precision="highest").reshape(side * side, D)
