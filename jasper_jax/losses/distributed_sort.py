"""Sorting over the devices of a mesh: each holds one block of every row, before and after.

A bitonic network (Batcher, 1968) whose comparators are pairs of devices: both send their blocks to each other, both
merge the two blocks, one keeps the lower half and one the upper. N devices take log₂N (log₂N + 1) / 2 rounds, in one
loop with one merge in it. (`lax.sort` along a sharded dimension sorts all of it on every device.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jasper_jax.losses import merge_kernel


def sort_blocks(
    operands: Sequence[jax.Array], axes: Sequence[str], parts: int, *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Sort `[R, n]` blocks along the last dimension, across devices; to be called in a `shard_map`.

    Args:
      operands: the key, then what moves with it, each `[R, n]`: this device's block of R rows.
      axes: of the mesh; `parts` is the number of devices along them, a power of 2.
      interpret: run the merging kernel in Python, without a TPU.

    Returns:
      The operands, sorted: the first device along `axes` holds the lowest n keys of each row. Equal keys are in any
      order.

    Raises:
      ValueError: `parts` is not a power of 2.
    """
    sort = partial(lax.sort, dimension=1, num_keys=1, is_stable=False)
    blocks = sort(tuple(operands))
    levels = parts.bit_length() - 1
    if parts != 1 << levels:
        raise ValueError(f"parts: expected a power of 2, got {parts}")
    if levels == 0:
        return blocks
    me, size = lax.axis_index(tuple(axes)), blocks[0].shape[1]
    # (level, bit) of each round: runs of 2^(level + 1) blocks are merged, rising and falling in turn.
    rounds = jnp.asarray([(level, bit) for level in range(levels) for bit in range(level, -1, -1)], jnp.int32)

    def swap(bit: int, blocks: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        pairs = [(device, device ^ (1 << bit)) for device in range(parts)]
        return tuple(lax.ppermute(block, tuple(axes), pairs) for block in blocks)

    def keep(number: jax.Array, mine: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        level, bit = rounds[number, 0], rounds[number, 1]
        theirs = lax.switch(bit, [partial(swap, bit) for bit in range(levels)], mine)
        first = (me >> bit) & 1 == 0  # of the two
        rising = (me >> (level + 1)) & 1 == 0
        if merge_kernel.fits(mine[0].shape):
            return merge_kernel.merge(mine, theirs, first == rising, interpret=interpret)
        # In the same order on both devices: equal keys then end up on one of them, not on both or none.
        both = [(jnp.where(first, a, b), jnp.where(first, b, a)) for a, b in zip(mine, theirs)]
        merged = sort(tuple(jnp.concatenate(pair, axis=1) for pair in both))
        start = jnp.where(first == rising, 0, size)
        return tuple(lax.dynamic_slice_in_dim(block, start, size, axis=1) for block in merged)

    return lax.fori_loop(0, len(rounds), keep, blocks)
