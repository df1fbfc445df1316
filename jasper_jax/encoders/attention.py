"""Softmax attention in the two layouts that the backends like, behind one function.

On CPU, einsums over ``[B, L, H, d]`` are 4 to 6 times slower in XLA than the same products with the heads moved next
to the batch (``[B·K, ., d]`` batched matmuls); on GPU and TPU ``jax.nn.dot_product_attention`` is the better start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "heads_first", "dot_product")
CACHE = 2**20
_MASKED = -1e30  # finite: a row whose keys are all masked gets equal weights, not NaN
_chosen: ContextVar[str] = ContextVar("attention", default="auto")


@contextmanager
def using(implementation: str) -> Iterator[None]:
    """Choose the implementation for what is traced inside. ``auto`` asks for the default backend, which is wrong
    when a program is compiled for another one: then name it."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; one of {', '.join(IMPLEMENTATIONS)} is needed")
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """``softmax(scale · Q Kᵀ + bias) V`` per head; the softmax is float32 whatever the inputs.

    query ``[B, L, H, d]``; key and value ``[B, M, K, d]`` with H a multiple of K (grouped queries: head h reads
    key-value head h // (H/K)). ``mask`` is boolean, True = may be looked at, ``bias`` is added to the scores; both
    broadcast to ``[B, H, L, M]``. ``scale`` defaults to d^-½. Returns ``[B, L, H, d]`` in the query's dtype; a row
    with nothing to look at is finite.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    implementation = _chosen.get()
    if implementation == "auto":
        implementation = "heads_first" if jax.default_backend() == "cpu" else "dot_product"
    if implementation == "dot_product":
        return jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask, scale=scale, is_causal=causal
        )
    return _heads_first(query, key, value, mask, bias, causal, scale)


def _heads_first(query, key, value, mask, bias, causal, scale) -> jax.Array:
    """``_scores_and_sum`` for the whole batch, or for groups of rows in turn where the scores of all would not stay
    in the processor's cache: at 256 tokens that is three times faster."""
    B, L, H, _ = query.shape
    M = key.shape[1]
    if causal:
        below = jnp.tril(jnp.ones((L, M), bool))
        mask = below if mask is None else mask & below
    mask = None if mask is None else jnp.broadcast_to(mask, (B, *jnp.broadcast_shapes(mask.shape, (1,) * 4)[1:]))
    group = _rows_in_cache(B, 4 * H * L * M)
    if group == B:
        return _core(query, key, value, mask, bias, scale)
    parts = jax.tree.map(lambda x: x.reshape(B // group, group, *x.shape[1:]), (query, key, value, mask))
    shared = bias is None or bias.shape[0] == 1
    if not shared:
        bias = bias.reshape(B // group, group, *bias.shape[1:])
    out = jax.lax.map(lambda part: _core(*part[0], bias if shared else part[1], scale), (parts, None if shared else bias))
    return out.reshape(query.shape)


def _rows_in_cache(B: int, row_bytes: int) -> int:
    """The largest divisor of B whose rows' scores fit."""
    fitting = [rows for rows in range(1, B + 1) if B % rows == 0 and rows * row_bytes <= CACHE]
    return max(fitting, default=1)


def _core(query, key, value, mask, bias, scale) -> jax.Array:
    """Batched matmuls over ``[B·K, G·L, d]`` with G = H/K: no einsum with the heads inside, no repeated keys. The sum
    of the weights is divided out after the second product, which is smaller than the scores."""
    B, L, H, d = query.shape
    M, K = key.shape[1], key.shape[2]
    G = H // K
    q = (query * scale).transpose(0, 2, 1, 3).reshape(B * K, G * L, d)
    k = key.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    v = value.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    scores = jnp.einsum("nld,nmd->nlm", q, k, preferred_element_type=jnp.float32).reshape(B, H, L, M)
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum(
        "nlm,nmd->nld",
        weights.astype(value.dtype).reshape(B * K, G * L, M),
        v,
        preferred_element_type=jnp.float32,
    )
    return (out.reshape(B, H, L, d) / total).transpose(0, 2, 1, 3).astype(query.dtype)
