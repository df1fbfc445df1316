"""A table of positions at another image size: bicubic interpolation, as PyTorch's ``interpolate`` does it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_A = -0.75  # the cubic convolution's parameter in PyTorch


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
    return matrix


@functools.lru_cache(maxsize=16)
def _matrix(inputs: int, outputs: int) -> np.ndarray:
    return bicubic_matrix(inputs, outputs).astype(np.float32)


def resized(table: jax.Array, side: int) -> jax.Array:
    """``[s·s, D]`` positions of a square grid -> ``[side·side, D]``, float32; the same table where the sides agree."""
    rows, D = table.shape
    s = round(rows**0.5)
    if s == side:
        return table
    matrix = jnp.asarray(_matrix(s, side))
    grid = table.astype(jnp.float32).reshape(s, s, D)
    return jnp.einsum("hi,wj,ijd->hwd", matrix, matrix, grid, precision="highest").reshape(side * side, D)
