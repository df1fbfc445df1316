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
_CACHE = 2**22  # bytes of scores worked on at once on CPU
_MASKED = -1e30  # finite: a row whose keys are all masked gets equal weights, not NaN
_chosen: ContextVar[tuple[str, bool]] = ContextVar("attention", default=("auto", True))


@contextmanager
def using(implementation: str, *, grouped: bool = True) -> Iterator[None]:
    """Choose the implementation for what is traced inside. ``auto`` asks for the default backend, which is wrong
    when a program is compiled for another one: then name it. ``grouped`` allows ``heads_first`` to take rows in
    groups; the backward pass of that loop copies more than the groups save."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; one of {', '.join(IMPLEMENTATIONS)} is needed")
    token = _chosen.set((implementation, grouped))
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
    implementation, grouped = _chosen.get()
    if implementation == "auto":
        implementation = "heads_first" if jax.default_backend() == "cpu" else "dot_product"
    if implementation == "dot_product":
        return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale, is_causal=causal)
    return _heads_first(query, key, value, mask, bias, causal, scale, grouped)


def _heads_first(query, key, value, mask, bias, causal, scale, grouped) -> jax.Array:
    """``_products`` over the whole batch, or over groups of rows in turn where the scores of all would leave the
    processor's cache: a fifth of an encoder's time at 256 tokens. Not across devices, where rows lie apart."""
    B, L, H, _ = query.shape
    M = key.shape[1]
    if causal:
        below = jnp.tril(jnp.ones((1, 1, L, M), bool))
        mask = below if mask is None else mask & below
    operands = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}
    group = B if jax.device_count() > 1 or not grouped else _rows_in_cache(B, 4 * H * L * M)
    if group == B:
        return _products(**operands, scale=scale)
    by_row = {name: x for name, x in operands.items() if x is not None and x.shape[0] == B}
    shared = {name: x for name, x in operands.items() if name not in by_row}
    grouped = {name: x.reshape(B // group, group, *x.shape[1:]) for name, x in by_row.items()}
    out = jax.lax.map(lambda rows: _products(**rows, **shared, scale=scale), grouped)
    return out.reshape(query.shape)


def _rows_in_cache(B: int, row_bytes: int) -> int:
    """The largest divisor of B whose rows' scores fit, or one row."""
    return max((rows for rows in range(1, B + 1) if B % rows == 0 and rows * row_bytes <= _CACHE), default=1)


def _products(*, query, key, value, mask, bias, scale) -> jax.Array:
    """Batched matmuls over ``[B·K, G·L, d]`` with G = H/K: no einsum with the heads inside, no repeated keys. The sum
    of the weights is divided out after the second product, which is smaller than the scores."""
    B, L, H, d = query.shape
    M, K = key.shape[1], key.shape[2]
    G = H // K
    q = query.transpose(0, 2, 1, 3).reshape(B * K, G * L, d)
    k = key.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    v = value.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    scores = jnp.einsum("nld,nmd->nlm", q, k, preferred_element_type=jnp.float32)
    scores = (scores * scale).reshape(B, H, L, M)
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
