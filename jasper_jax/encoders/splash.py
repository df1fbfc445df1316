"""JAX's splash attention kernel for TPU, over rows of packed texts, which keeps the scores out of memory.

The kernel works on one row ``[H, L, d]`` and is mapped over the rows. It supports grouped queries, masks by segments,
direction and window, and skips tiles that direction or window exclude. Its gradient is a kernel too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec

from jasper_jax.encoders.layout import Seen
from jasper_jax.parameters.sharding import ROWS, TENSOR, extent, present

INTERPRET = False
"""Interpret the kernel, so that tests need no TPU."""
_LANES = 128  # the kernel's tiles of queries and keys are multiples of this
_TILES = (512, 256, 128)  # of queries and keys; the largest that divides L
_WIDEST = 256  # larger heads may not fit the chip's fast memory


def fits(query: Any, key: Any) -> bool:
    """Whether the kernel supports ``query [R, L, H, d]`` and ``key [R, M, K, d]`` (shapes and dtypes): M = L, L a
    multiple of 128, d a multiple of 8 up to 256, bfloat16 or float32, R divisible by the mesh's row shards."""
    (R, L, _, d), M = query.shape, key.shape[1]
    return (
        L == M
        and L % _LANES == 0
        and d % 8 == 0
        and d <= _WIDEST
        and query.dtype in (jnp.bfloat16, jnp.float32)
        and R % extent(ROWS, jax.sharding.get_abstract_mesh()) == 0
    )


def attend(query: jax.Array, key: jax.Array, value: jax.Array, seen: Seen | None, scale: float) -> jax.Array:
    """As ``attention.attend``, for what ``fits``. Padding sees padding: its result is finite but meaningless.

    The compiler cannot partition a kernel, so on a mesh (``jax.set_mesh``) each device computes its rows, and its heads
    where ``tensor`` divides those of both queries and keys.
    """
    # The kernel has no scale. In float32: a scale rounded to bfloat16 would change every softmax.
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    segments, kind = (None, 0) if seen is None else (seen.segments, seen.kind)
    windows, causal = ((None,), False) if seen is None else (seen.windows, seen.causal)

    def run(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, kind: jax.Array) -> jax.Array:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        ids = None if segments is None else pallas.SegmentIds(segments, segments)
        kernels = [jax.vmap(_kernel(q.shape[1], q.shape[2], window, causal)) for window in windows]
        out = jax.lax.switch(kind, kernels, q, k, v, ids) if len(kernels) > 1 else kernels[0](q, k, v, ids)
        return out.transpose(0, 2, 1, 3)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        rows = present(ROWS, mesh) or None
        shared = all(n % extent(TENSOR, mesh) == 0 for n in (query.shape[2], key.shape[2]))
        across = PartitionSpec(rows, None, TENSOR if shared and present(TENSOR, mesh) else None, None)
        specs = (across, across, across, PartitionSpec(rows), PartitionSpec())
        # check_vma: kernels do not declare over which axes their results vary.
        run = jax.shard_map(run, in_specs=specs, out_specs=across, check_vma=False)
    return run(query, key, value, segments, jnp.asarray(kind, jnp.int32))


def _kernel(heads: int, L: int, window: int | None, causal: bool) -> Any:
    """For one row: ``q [H, L, d]``, ``k``, ``v [K, L, d]``, segments -> ``[H, L, d]``."""
    if window is not None:
        mask = pallas.LocalMask((L, L), (window - 1, 0) if causal else (window, window), 0)
    else:
        mask = pallas.CausalMask((L, L)) if causal else pallas.FullMask((L, L))
    tile = next(tile for tile in _TILES if L % tile == 0)
    # The fused backward kernel writes the query's gradient once per tile of keys: cheaper with a single tile.
    joint = tile == L
    tiles = pallas.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_q_dq=None if joint else tile,
        block_kv_dq=None if joint else tile,
        use_fused_bwd_kernel=joint,
    )
    masks = pallas.MultiHeadMask([mask] * heads)
    return pallas.make_splash_mha(masks, block_sizes=tiles, head_shards=1, q_seq_shards=1, interpret=INTERPRET)
