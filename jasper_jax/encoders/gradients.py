"""Linear maps and norms with hand-written backward passes: for XLA's CPU backend, and for gradients in float32.

JAX's derived gradients of weights have the dtype of the computation: in bfloat16 each device's sum over its tokens is
rounded before the devices' sums are added. On CPU derived gradients are also slow: XLA copies the incoming gradient
transposed for the weight gradient, computes that incoming gradient once for each of its three readers, and materialises
norms' scales at the size of the states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp

_ROWS = (((0,), (0,)), ((), ()))  # contract the rows of both: [T, n], [T, m] -> [n, m]


_wide: ContextVar[bool] = ContextVar("wide gradients", default=False)


@contextmanager
def summed_in(dtype: str) -> Iterator[None]:
    """In what is traced inside, gradients of weights are summed over tokens and devices in ``float32``, or, with
    ``bfloat16``, in the dtype of the computation, which is half the bytes between devices."""
    token = _wide.set(dtype == "float32")
    try:
        yield
    finally:
        _wide.reset(token)


def are_wide() -> bool:
    """Whether gradients of weights are summed in the dtype of the weights, whatever that of the computation."""
    return _wide.get()


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, barrier: bool = True) -> jax.Array:
    """``x @ kernel + bias``: ``[..., n]``, ``[n, m]``, ``[m]`` or None -> ``[..., m]``, in x's dtype.

    Gradients of kernel and bias come in their own dtype, also where that is wider than x's: products of a token are
    rounded, their sum is not. ``barrier``: the incoming gradient is computed once for its three readers.
    """
    return _linear(x, kernel, bias, barrier, (kernel.dtype.name, bias.dtype.name if bias is not None else ""))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _linear(x, kernel, bias, barrier, dtypes):
    y = jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + bias.astype(x.dtype)


def _linear_forward(x, kernel, bias, barrier, dtypes):
    return _linear(x, kernel, bias, barrier, dtypes), (x, kernel.astype(x.dtype))


def _linear_backward(barrier, dtypes, kept, dy):
    x, kernel = kept
    of_kernel, of_bias = dtypes
    rows, above = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if barrier:
        above = jax.lax.optimization_barrier(above)
    dx = jax.lax.dot_general(above, kernel, (((1,), (1,)), ((), ())))
    d_kernel = jax.lax.dot_general(rows, above, _ROWS, preferred_element_type=jnp.dtype(of_kernel))
    return dx.reshape(x.shape), d_kernel, above.sum(axis=0, dtype=of_bias) if of_bias else None


_linear.defvjp(_linear_forward, _linear_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float) -> jax.Array:
    """``scale · (x - mean x) / √(var x + epsilon) + bias`` over the last axis, in float32 or wider inside, in x's dtype
    outside; the two-pass variance."""
    return _layer_norm(x, scale, bias, epsilon)[0]


def _layer_norm(x, scale, bias, epsilon):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    mean = x.astype(wide).mean(axis=-1, keepdims=True)
    centred = x.astype(wide) - mean
    inverse = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon)
    y = centred * (inverse * scale.astype(wide))
    return (y if bias is None else y + bias.astype(wide)).astype(x.dtype), mean, inverse


def _layer_norm_forward(x, scale, bias, epsilon):
    y, mean, inverse = _layer_norm(x, scale, bias, epsilon)
    return y, (x, scale, bias is not None, mean, inverse)


def _layer_norm_backward(epsilon, kept, dy):
    x, scale, has_bias, mean, inverse = kept
    above, normed, weight = _rows(dy, mean.dtype), _rows(x, mean.dtype), scale.astype(mean.dtype)
    inverse = inverse.reshape(-1, 1)
    normed = (normed - mean.reshape(-1, 1)) * inverse
    product = above * normed
    dx = inverse * (above * weight - _mean_with(above, weight) - normed * _mean_with(product, weight))
    d_bias = above.sum(axis=0).astype(dy.dtype) if has_bias else None
    return dx.reshape(x.shape).astype(x.dtype), product.sum(axis=0).astype(scale.dtype), d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """``scale · x / √(mean x² + epsilon)`` over the last axis, in float32 or wider inside, in x's dtype outside."""
    return _rms_norm(x, scale, epsilon)[0]


def _rms_norm(x, scale, epsilon):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inverse = jax.lax.rsqrt((wide * wide).mean(axis=-1, keepdims=True) + epsilon)
    return (wide * (inverse * scale.astype(wide.dtype))).astype(x.dtype), inverse


def _rms_norm_forward(x, scale, epsilon):
    y, inverse = _rms_norm(x, scale, epsilon)
    return y, (x, scale, inverse)


def _rms_norm_backward(epsilon, kept, dy):
    x, scale, inverse = kept
    above, normed, weight = _rows(dy, inverse.dtype), _rows(x, inverse.dtype), scale.astype(inverse.dtype)
    inverse = inverse.reshape(-1, 1)
    normed = normed * inverse
    product = above * normed
    dx = inverse * (above * weight - normed * _mean_with(product, weight))
    return dx.reshape(x.shape).astype(x.dtype), product.sum(axis=0).astype(scale.dtype)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def _rows(x: jax.Array, dtype) -> jax.Array:
    """``[..., n]`` -> ``[T, n]``."""
    return x.reshape(-1, x.shape[-1]).astype(dtype)


def _mean_with(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """The mean of ``rows · weight`` over the last axis, ``[T, n]`` -> ``[T, 1]``, as a matrix product: for a sum XLA
    would first materialise ``rows · weight``."""
    return (rows @ weight)[:, None] / weight.size
