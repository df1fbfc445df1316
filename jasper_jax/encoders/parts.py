"""Building blocks of every family: dense, embedding, norm, activation, dropout.

Parameters are initialised in float32; a module casts them to its ``dtype`` at use. nnx.Dropout is not used: it would
put random-state leaves among the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasper_jax.encoders import attention, gradients
from jasper_jax.parameters.sharding import DATA, ROWS, TENSOR, WIDE, constrain


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x·Φ(x) with the normal distribution Φ, in float32 or float64 inside."""
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    number = np.dtype(wide.dtype).type
    below = 0.5 * (1.0 + jax.lax.erf(wide * number(1 / np.sqrt(2))))  # Φ(x)
    density = jnp.exp(-0.5 * wide * wide) * number(1 / np.sqrt(2 * np.pi))
    return (wide * below).astype(x.dtype), (below + wide * density).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The backward pass keeps one array, the slope; JAX's own derivative keeps several [rows, tokens, 4·hidden] arrays,
    # the largest of a layer.
    value, slope = _gelu_and_slope(*primals)
    return value, slope * tangents[0]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x), CLIP's."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""Hugging Face ``hidden_act`` -> function."""

Dropout = Callable[[jax.Array, int], jax.Array]
"""``dropout(x, place)``: each ``place`` in a layer draws its own mask."""


class Embedding(nnx.Module):
    """A table ``[V, D]``; only the looked-up rows are cast (nnx.Embed casts the whole table at each call).

    On a mesh the table is sharded by width: each device looks up its slice of the vectors of all ids ``[B, L]``, then
    slices are exchanged for complete vectors of the device's rows. These are two constraints, because XLA's partitioner
    may otherwise gather the vectors of the whole batch on every device."""

    def __init__(self, rows: int, width: int, *, std: float, dtype: Any, rngs: nnx.Rngs, padding: int | None = None):
        table = std * jax.random.normal(rngs.params(), (rows, width), jnp.float32)
        if padding is not None and padding < rows:  # as torch's padding_idx: that row starts at zero
            table = table.at[padding].set(0.0)
        self.embedding = nnx.Param(table)
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        if ids.ndim != 2:
            return jnp.take(self.embedding[...], ids, axis=0).astype(self.dtype)
        slices = jnp.take(self.embedding[...], constrain(ids, DATA), axis=0).astype(self.dtype)
        by_row = constrain(constrain(slices, DATA, None, WIDE), ROWS, None, TENSOR)
        return constrain(by_row, ROWS)


class Linear(nnx.Linear):
    """nnx.Linear, with the backward pass of ``gradients`` on CPU and where gradients are summed in float32."""

    def __call__(self, x: jax.Array) -> jax.Array:
        on_cpu, kernel, bias = attention.platform() == "cpu", self.kernel[...], _value(self.bias)
        if gradients.are_wide():
            return gradients.linear(x.astype(self.dtype), kernel, bias, barrier=on_cpu)
        if not on_cpu:
            return super().__call__(x)
        return gradients.linear(*self.promote_dtype((x, kernel, bias), dtype=self.dtype))


class LayerNorm(nnx.LayerNorm):
    """nnx.LayerNorm, with the backward pass of ``gradients`` on CPU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        if attention.platform() != "cpu":
            return super().__call__(x)
        x, scale, bias = self.promote_dtype((x, _value(self.scale), _value(self.bias)), dtype=self.dtype)
        return gradients.layer_norm(x, scale, bias, self.epsilon)


class RMSNorm(nnx.RMSNorm):
    """nnx.RMSNorm, with the backward pass of ``gradients`` on CPU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        if attention.platform() != "cpu":
            return super().__call__(x)
        x, scale = self.promote_dtype((x, _value(self.scale)), dtype=self.dtype)
        return gradients.rms_norm(x, scale, self.epsilon)


def _value(parameter: nnx.Param | None) -> jax.Array | None:
    return None if parameter is None else parameter[...]


def dense(d_in: int, d_out: int, *, std: float, dtype: Any, rngs: nnx.Rngs, bias: bool = True) -> Linear:
    """``x @ kernel + bias``: kernel ``[d_in, d_out]`` drawn from N(0, std²), bias zero."""
    return Linear(
        d_in,
        d_out,
        use_bias=bias,
        kernel_init=nnx.initializers.normal(std),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def layer_norm(width: int, epsilon: float, *, dtype: Any, rngs: nnx.Rngs, bias: bool = True) -> LayerNorm:
    """LayerNorm with float32 statistics; the two-pass variance, as ``E[x²] - E[x]²`` cancels for large means."""
    return LayerNorm(width, epsilon=epsilon, dtype=dtype, use_bias=bias, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, epsilon: float, *, dtype: Any, rngs: nnx.Rngs) -> RMSNorm:
    """``scale · x / √(mean x² + epsilon)`` with float32 statistics (arXiv 1910.07467)."""
    return RMSNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)


def make_dropout(rate: float, key: jax.Array | None) -> Dropout:
    """Inverted dropout drawn from ``key`` folded with the place; the identity when ``rate`` is 0."""
    if rate == 0.0:
        return lambda x, place: x
    if not 0.0 < rate < 1.0:
        raise ValueError(f"dropout is {rate}; expected 0 <= dropout < 1")
    if key is None:
        raise ValueError(f"dropout is {rate} but dropout_key is None")

    def drop(x: jax.Array, place: int) -> jax.Array:
        keep = jax.random.bernoulli(jax.random.fold_in(key, place), 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)

    return drop
