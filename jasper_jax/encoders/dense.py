"""Linear maps of pooled vectors (a student's heads, a teacher's Dense steps) in float32 at full precision.

``precision=HIGHEST``: JAX's default rounds float32 operands to bfloat16 on TPU and TF32 on GPU, too coarse for the
relative loss's margin (0.015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jasper_jax.runtime.errors import UserError

Arrays = jax.Array | np.ndarray

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}
"""``Dense.activation`` -> function."""


def linear(
    x: Float[Arrays, "... D"], kernel: Float[Arrays, "D E"], bias: Float[Arrays, " E"] | None = None
) -> Float[jax.Array, "... E"]:
    """``x @ kernel + bias``: ``[..., D] -> [..., E]``, float32 (float64 in, float64 out)."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    out = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return out if bias is None else out + bias


def dense(
    x: Float[Arrays, "B D"], weights: Sequence[tuple[Arrays, Arrays | None]], activations: Sequence[str]
) -> Float[jax.Array, "B E"]:
    """Dense steps in turn, each ``activation(x @ kernel + bias)``; without steps ``x``.

    Args:
      weights: (kernel ``[in, out]``, bias ``[out]`` or None) of each step.
      activations: a name in ``ACTIVATIONS`` for each.
    """
    for (kernel, bias), activation in zip(weights, activations, strict=True):
        x = ACTIVATIONS[activation](linear(x, kernel, bias))
    return jnp.asarray(x)


def refuse_chain(
    where: str, weights: Sequence[tuple[Arrays, Arrays | None]], activations: Sequence[str], width: int, dim: int
) -> None:
    """UserError, which begins with ``where``: these Dense steps do not lead from ``width`` dimensions to ``dim``."""
    for kernel, _ in weights:
        if kernel.shape[0] != width:
            raise UserError(f"{where}: a kernel takes {kernel.shape[0]} dimensions, {width} come in")
        width = kernel.shape[1]
    if width != dim:
        raise UserError(f"{where}: its Dense steps give {width} dimensions")
    for activation in activations:
        if activation not in ACTIVATIONS:
            raise UserError(f"{where}: activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
