"""Sorting over the devices of a mesh: each holds one block of every row, before and after.

A bitonic network (Batcher, 1968), level by level: two sorted runs that lie beside each other, one rising and one
falling, become one of twice the length. Where a run is longer than a block, devices compare their blocks entry by
entry. N devices exchange their blocks log₂N (log₂N + 1) / 2 times. (`lax.sort` along a sharded dimension sorts all of
it on every device.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jasper_jax.losses.merge_kernel import LANES, exchange, merge, sort_runs

Blocks = tuple[jax.Array, ...]


class Level(NamedTuple):
    """One level of the network on blocks `[R, size]` of a device, inside a `shard_map`.

    ``length``: of the runs that it makes; ``axes``: of the mesh, over which the blocks lie, none for one block;
    ``parts``: the devices along them.
    """

    length: int
    size: int
    axes: tuple[str, ...]
    parts: int
    kernel: bool

    @property
    def me(self) -> jax.Array | int:
        """Which block this device holds."""
        return lax.axis_index(self.axes) if self.axes else 0

    @property
    def runs(self) -> int:
        """That begin in a block, or the one that it is part of."""
        return max(1, self.size // self.length)

    def number(self, length: int) -> jax.Array:
        """`[size]`: of which run of this length an entry is part."""
        return (self.me * self.size + lax.iota(jnp.int32, self.size)) // length

    def falling(self) -> jax.Array:
        """bool `[runs]`: odd runs fall, so that two beside each other make a bitonic one."""
        return self.number(self.length)[:: self.size // self.runs] % 2 == 1

    def merge(self, blocks: Blocks, keys: int) -> Blocks:
        """Sort the runs, each of two sorted ones."""
        rows = blocks[0].shape[0]
        bit = (self.length // self.size) >> 1
        while bit:
            first = (self.me & bit) == 0
            pairs = [(device, device ^ bit) for device in range(self.parts)]
            theirs = [lax.ppermute(block, self.axes, pairs) for block in blocks]
            kept = zip(*exchange(blocks, theirs, self.falling() ^ ~first, keys))
            blocks = tuple(one for one, _ in kept)
            bit >>= 1
        runs = tuple(block.reshape(rows * self.runs, -1) for block in blocks)
        merged = merge(runs, jnp.tile(self.falling(), rows), keys, kernel=self.kernel)
        return tuple(block.reshape(rows, self.size) for block in merged)

    def prefix_sums(self, of: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For every entry of `[R, size]`, whole numbers: the sum over its run up to it, and over all of its run."""
        runs = of.reshape(len(of), self.runs, -1)
        sums = jnp.cumsum(runs, axis=-1, dtype=jnp.int32)
        total = sums[..., -1:]
        if self.length > self.size:
            devices, device = self.length // self.size, jnp.arange(self.parts)
            same = device // devices == self.me // devices
            totals = lax.all_gather(total, self.axes)
            mask = (-1,) + (1,) * total.ndim
            before = jnp.where((same & (device < self.me)).reshape(mask), totals, 0)
            sums, total = sums + jnp.sum(before, axis=0), jnp.sum(jnp.where(same.reshape(mask), totals, 0), axis=0)
        return sums.reshape(of.shape), jnp.broadcast_to(total, runs.shape).reshape(of.shape)


def levels(size: int, axes: Sequence[str], parts: int, *, kernel: bool) -> list[Level]:
    """The levels that sort blocks of `size` on `parts` devices, from runs of 128.

    Raises:
      ValueError: a number is not a power of 2, or a block shorter than 256.
    """
    if parts.bit_count() != 1 or size.bit_count() != 1 or size < 2 * LANES:
        raise ValueError(
            f"expected powers of 2, and blocks of at least {2 * LANES}; got {parts} devices, blocks of {size}"
        )
    lengths = [LANES << level for level in range(1, (parts * size // LANES).bit_length())]
    return [Level(length, size, tuple(axes), parts, kernel) for length in lengths]


def sort_blocks(blocks: Blocks, axes: Sequence[str], parts: int, *, keys: int = 1, kernel: bool) -> Blocks:
    """Sort `[R, n]` blocks along the last dimension, across devices; to be called in a `shard_map`.

    Args:
      blocks: one or two keys, the second deciding between equal first ones, then what moves with them: each `[R, n]`,
        this device's block of R rows, n a power of 2 of at least 256. No two entries of a row have the same keys.
      axes: of the mesh, over which the blocks lie; `parts` is the number of devices along them, a power of 2.
      keys: how many.
      kernel: merge in the kernel for TPU.

    Returns:
      As `blocks`: the first device along `axes` holds the lowest n keys of each row, rising.

    Raises:
      ValueError: a number is not a power of 2.
    """
    network = levels(blocks[0].shape[1], axes, parts, kernel=kernel)
    blocks = sort_runs(blocks, keys, kernel=kernel)
    for level in network:
        blocks = level.merge(blocks, keys)
    return blocks
