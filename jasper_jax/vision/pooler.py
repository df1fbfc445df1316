"""Vision tokens -> image tokens: adaptive average pooling over tokens and channels, without parameters.

Equal to PyTorch's ``AdaptiveAvgPool2d((n, D))`` on ``[T, C]`` (Jasper's image path, arXiv 2412.19048): output i is the
mean of the inputs from ⌊i·T/n⌋ to ⌈(i+1)·T/n⌉, whether n is smaller or larger than T. A mean over a rectangle is a mean
of means, so the two axes are two products with constant matrices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def pooling_matrix(inputs: int, outputs: int) -> Float[np.ndarray, "n T"]:
    """``[outputs, inputs]``: row i holds the weights of output i; every row sums to 1."""
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
