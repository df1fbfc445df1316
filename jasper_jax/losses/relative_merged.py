"""Order violations counted while sorting: O(P log² P) steps of a sorting network that the devices share.

Merge sort counts inversions (Knuth, volume 3): where two runs become one, an entry learns how many of the other run it
passes. Here each pair of texts p is two entries, a *row* of value s_p - margin and a *point* of value s_p, and a
violation is a point above a row that the teacher puts higher.

1. All entries in the order of the teacher; of equal ones, rows before points.
2. Sort them by value; of equal ones, points before rows. Each time two runs become one, a row of the second, which the
   teacher puts higher, counts the points of the first that are above it, and such a point the rows below it.
3. All counts back into the order of the pairs.

Keys are the value and the number of the entry, so that none are equal and ties need no care. A device holds the same
number of entries throughout.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jasper_jax.losses.distributed_sort import Blocks, Level, levels, sort_blocks
from jasper_jax.losses.merge_kernel import LANES, sort_runs
from jasper_jax.parameters.sharding import AXES, devices, present

POINT = 1 << 30
"""Bit of an entry's number, which is otherwise twice that of its pair; the lowest bit says in which of two runs that
become one the entry is."""


def merged(
    similarities: jax.Array, margin: jax.Array, teacher: jax.Array, *, kernel: bool = True
) -> tuple[jax.Array, jax.Array]:
    """For each pair of texts, how the violations it takes part in push its similarity.

    Args:
      similarities: student similarities `[H, P]` (H student vectors share one teacher), float32.
      margin: `[H]`.
      teacher: teacher similarities `[P]`, float32.
      kernel: merge in the kernel for TPU.

    Returns:
      `(push, lower)` as `jasper_jax.losses.relative_tiled.tiled` returns them, from the same comparisons.
    """
    pairs = len(teacher)
    axes, parts = sharing()
    size = -(-pairs // parts)  # of one device

    def run(similarities: jax.Array, margin: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
        lower, higher = count_violations(similarities, margin, teacher, axes, parts, kernel)
        return higher - lower, lower

    similarities, teacher = (
        jnp.pad(of, [(0, 0)] * (of.ndim - 1) + [(0, size * parts - pairs)], constant_values=jnp.inf)
        for of in (similarities, teacher)
    )
    if axes:
        of_pairs = PartitionSpec(None, axes)
        # check_vma: kernels do not declare over which axes their results vary.
        specs = (of_pairs, PartitionSpec(), PartitionSpec(axes))
        run = jax.shard_map(run, in_specs=specs, out_specs=of_pairs, check_vma=False)
    push, lower = run(similarities, margin, teacher)
    return push[:, :pairs], lower[:, :pairs]


def sharing() -> tuple[tuple[str, ...], int]:
    """The axes of the mesh over which pairs lie, and the devices along them.

    The network takes a power of 2. Each device of a mesh of another number does all of the work.
    """
    divided = devices() > 1 and devices().bit_count() == 1
    return (present(AXES, jax.sharding.get_abstract_mesh()), devices()) if divided else ((), 1)


def count_violations(
    similarities: jax.Array, margin: jax.Array, teacher: jax.Array, axes: tuple[str, ...], parts: int, kernel: bool
) -> tuple[jax.Array, jax.Array]:
    """On each device, of its own pairs: in how many violations they are the better pair, and in how many the worse.

    Args:
      similarities: student similarities `[H, n]`, float32, and `teacher` `[n]`: infinite where there is no pair.
      margin: `[H]`.
      axes: of the mesh, over which the pairs lie, none if a device has all; `parts` is the number of devices, a power
        of 2.
      kernel: merge in the kernel for TPU.

    Returns:
      `(lower, higher)`, int32 `[H, n]`.
    """
    heads, pairs = similarities.shape
    size = max(LANES, 1 << (pairs - 1).bit_length())
    network = levels(2 * size, axes, parts, kernel=kernel)

    def widen(x: jax.Array) -> jax.Array:  # -0.0 and 0.0 are one value
        x = jnp.pad(x, ((0, 0), (0, size - pairs)), constant_values=jnp.inf)
        return jnp.where(x == 0, 0, x)

    student = widen(similarities)
    target = widen(jnp.broadcast_to(teacher, similarities.shape))
    number = jnp.broadcast_to(2 * (network[0].me * size + lax.iota(jnp.int32, size)), student.shape)
    entries = (
        jnp.concatenate([target, target], axis=1),
        jnp.concatenate([number, number + POINT], axis=1),
        jnp.concatenate([widen(similarities - margin[:, None]), student], axis=1),
    )
    _, number, value = sort_blocks(entries, axes, parts, keys=2, kernel=kernel)
    number, counts = _count((value, number ^ POINT), network)
    # From the numbers of entries to places: a pair's two counts lie beside each other.
    place = (number & (POINT - 2)) | (number < POINT)  # a row's number has the bit now
    _, counts = sort_blocks((place, counts), axes, parts, kernel=kernel)
    counts = counts.reshape(heads, size, 2)[:, :pairs]
    return counts[..., 0], counts[..., 1]


def _count(blocks: Blocks, network: list[Level]) -> Blocks:
    """`(number, counts)` of values and numbers in the order of the teacher, as they end up in the order of values."""
    value, number = blocks
    counts = _within_runs(value, number >= POINT)
    blocks = sort_runs((value, number, counts), 2, kernel=network[0].kernel)
    for level in network:
        value, number, counts = blocks
        number = (number & -2) | (level.number(level.length // 2) & 1)
        value, number, counts = level.merge((value, number, counts), 2)
        row, second = number >= POINT, (number & 1) == 1
        counts_row, counts_point = row & second, ~row & ~second
        up_to, all_points = level.prefix_sums(counts_point)
        below, all_rows = level.prefix_sums(counts_row)
        falling = jnp.repeat(level.falling(), value.shape[1] // level.runs)
        counts += jnp.where(counts_row, jnp.where(falling, up_to, all_points - up_to), 0)
        counts += jnp.where(counts_point, jnp.where(falling, all_rows - below, below), 0)
        blocks = value, number, counts
    return blocks[1:]


def _within_runs(value: jax.Array, row: jax.Array) -> jax.Array:
    """The counts of `[H, size]` within runs of 128, every entry compared with all others."""
    runs = (value.shape[0], -1, LANES)
    value, row = value.reshape(runs), row.reshape(runs)
    earlier = jnp.tril(jnp.ones((LANES, LANES), bool), -1)
    violates = earlier & row[..., :, None] & ~row[..., None, :] & (value[..., None, :] > value[..., :, None])
    counts = jnp.sum(violates, axis=-1, dtype=jnp.int32) + jnp.sum(violates, axis=-2, dtype=jnp.int32)
    return counts.reshape(len(value), -1)
