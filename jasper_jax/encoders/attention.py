"""Softmax attention in the form that suits the platform, behind one function.

On CPU, XLA computes einsums over ``[B, L, H, d]`` 4 to 6 times slower than ``[B·K, ., d]`` batched matmuls. On GPU and
TPU a fused kernel keeps the scores out of memory where its conditions hold; otherwise
``jax.nn.dot_product_attention`` runs in XLA's form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.encoders import splash
from jasper_jax.encoders.layout import Seen

IMPLEMENTATIONS = ("auto", "heads_first", "dot_product", "gpu", "cuda", "tpu")
"""``gpu`` and ``tpu``: what ``auto`` chooses on that platform; ``cuda``: for NVIDIA GPUs of compute capability 8 or
more with cuDNN, which need not be here."""
_CACHE = 2**22  # bytes of scores worked on at once on CPU
_MASKED = -1e30  # finite: a row whose keys are all masked gets equal weights, not NaN
_chosen: ContextVar[tuple[str, bool]] = ContextVar("attention", default=("auto", True))


@contextmanager
def using(implementation: str, *, grouped: bool = True) -> Iterator[None]:
    """Choose the implementation for what is traced inside. ``auto`` follows the default backend; name the platform when
    compiling for another one. (``jax.lax.platform_dependent`` would keep residuals of every branch for the backward
    pass.) ``grouped`` lets ``heads_first`` process rows in groups; in training that loop costs more than it saves."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention is {implementation!r}; expected one of {', '.join(IMPLEMENTATIONS)}")
    token = _chosen.set((implementation, grouped))
    try:
        yield
    finally:
        _chosen.reset(token)


def platform_of(implementation: str) -> str:
    """The platform that an implementation is compiled for."""
    if implementation == "cuda":
        return "gpu"
    return implementation if implementation in ("gpu", "tpu") else jax.default_backend()


def platform() -> str:
    """The platform of the program being traced (see ``using``)."""
    return platform_of(_chosen.get()[0])


def form_of(implementation: str, query: Any, key: Any, *, biased: bool = False) -> str:
    """``heads_first``, ``dot_product``, or a fused kernel: ``splash`` (TPU) or ``cudnn`` (GPU). Chosen by shapes and
    dtypes of ``query [B, L, H, d]`` and ``key [B, M, K, d]`` (``splash.fits``, ``_cudnn_fits``).

    No kernel is used with a bias: cuDNN would need it joined with the mask, a ``[B, H, L, L]`` array.
    """
    if implementation in ("heads_first", "dot_product"):
        return implementation
    platform = platform_of(implementation)
    if platform == "cpu":
        return "heads_first"
    if platform == "tpu" and not biased and splash.fits(query, key):
        return "splash"
    if platform == "gpu" and not biased:
        capability = 8.0 if implementation == "cuda" else _cuda_capability()
        if _cudnn_fits(query, key, capability):
            return "cudnn"
    return "dot_product"


def _cudnn_fits(query: Any, key: Any, capability: float | None) -> bool:
    """Stricter than cuDNN's own conditions, so that no shape fails in a run: compute capability 8 (Ampere) or more,
    bfloat16 or float16, d a multiple of 8 up to 128, L and M multiples of 64."""
    L, M, d = query.shape[1], key.shape[1], query.shape[3]
    return (
        capability is not None
        and capability >= 8
        and query.dtype in (jnp.bfloat16, jnp.float16)
        and d % 8 == 0
        and d <= 128
        and L % 64 == 0
        and M % 64 == 0
    )


def _cuda_capability() -> float | None:
    """The lowest of this machine's NVIDIA GPUs; None without any (AMD GPUs have no cuDNN)."""
    if jax.default_backend() != "gpu":
        return None
    devices = jax.local_devices()
    if "cuda" not in devices[0].client.platform_version.lower():
        return None
    return min(float(device.compute_capability) for device in devices)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    seen: Seen | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """``softmax(scale · Q Kᵀ + bias) V`` per head; the softmax is float32 whatever the inputs.

    query ``[B, L, H, d]``; key and value ``[B, M, K, d]`` with H a multiple of K (grouped queries: head h reads
    key-value head h // (H/K)). ``seen``: the mask; None: no mask. ``bias`` is added to the scores and broadcasts to
    ``[B, H, L, M]``. ``scale`` defaults to d^-½. Returns ``[B, L, H, d]`` in the query's dtype, finite even where
    everything is masked.
    """
    scale = float(query.shape[-1] ** -0.5) if scale is None else scale
    implementation, grouped = _chosen.get()
    form = form_of(implementation, query, key, biased=bias is not None)
    if form == "splash":
        return splash.attend(query, key, value, seen, scale)
    mask, causal = (None, False) if seen is None else (seen.mask, seen.causal)
    if form == "heads_first":
        return _heads_first(query, key, value, mask, bias, causal, scale, grouped)
    if form == "cudnn" and mask is not None:  # cuDNN takes it as a bias, which it does not broadcast
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], query.shape[1], key.shape[1]))
    kernel = "cudnn" if form == "cudnn" else "xla"
    return jax.nn.dot_product_attention(
        query, key, value, bias=bias, mask=mask, scale=scale, is_causal=causal, implementation=kernel
    )


def _heads_first(query, key, value, mask, bias, causal, scale, grouped) -> jax.Array:
    """``_products`` over the batch, or over groups of rows whose scores fit in the cache: this saves a fifth of an
    encoder's time at 256 tokens. Not grouped on a mesh, which divides the rows."""
    B, L, H, _ = query.shape
    M = key.shape[1]
    if causal:
        below = jnp.tril(jnp.ones((1, 1, L, M), bool))
        mask = below if mask is None else mask & below
    operands = {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}
    divided = jax.sharding.get_abstract_mesh().size > 1
    group = B if divided or not grouped else _rows_in_cache(B, 4 * H * L * M)
    if group == B:
        return _products(**operands, scale=scale)
    by_row = {name: x for name, x in operands.items() if x is not None and x.shape[0] == B}
    shared = {name: x for name, x in operands.items() if name not in by_row}
    grouped = {name: x.reshape(B // group, group, *x.shape[1:]) for name, x in by_row.items()}
    out = jax.lax.map(lambda rows: _products(**rows, **shared, scale=scale), grouped)
    return out.reshape(query.shape)


def _rows_in_cache(B: int, row_bytes: int) -> int:
    """The largest divisor of B whose rows' scores fit in the cache, at least 1."""
    return max((rows for rows in range(1, B + 1) if B % rows == 0 and rows * row_bytes <= _CACHE), default=1)


def _products(*, query, key, value, mask, bias, scale) -> jax.Array:
    """Batched matmuls over ``[B·K, G·L, d]`` with G = H/K: no repeated keys. The sum of the weights is divided out
    after the second product, which is smaller than the scores."""
    B, L, H, d = query.shape
    M, K = key.shape[1], key.shape[2]
    G = H // K
    q = query.transpose(0, 2, 1, 3).reshape(B * K, G * L, d)
    k = key.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    v = value.transpose(0, 2, 1, 3).reshape(B * K, M, d)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("nld,nmd->nlm", q, k, preferred_element_type=wide)
    scores = (scores * scale).reshape(B, H, L, M)
    if bias is not None:
        scores = scores + bias.astype(wide)
    if mask is not None:
        scores = jnp.where(mask, scores, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights.astype(value.dtype).reshape(B * K, G * L, M)
    out = jnp.einsum("nlm,nmd->nld", weights, v, preferred_element_type=wide)
    return (out.reshape(B, H, L, d) / total).transpose(0, 2, 1, 3).astype(query.dtype)
