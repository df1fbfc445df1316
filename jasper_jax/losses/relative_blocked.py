"""Order violations counted by blocks: O(P^1.5) comparisons in fast memory, and sorts, shared out over the devices.

Each count that the loss needs has the form: for a row (x, y), how many of the P points (x', z) have `x' < x` and
`z > y`. For the violations in which p is the better pair, rows are (t, s - margin) and points (t, s). For those in
which it is the worse one, rows are (-t, -s) and points (-t, margin - s). So these are 2H problems of one form, and y
rises with z.

The points are cut into K blocks of S, once in the order of x and once in the order of z. The lowest z of every block is
a *border*; the *bucket* of a value is odd strictly between borders, even where it equals one, and buckets are ordered
as values are. So `z > y` where z is in a higher bucket than y, or where both are between the same two borders. The
count of a row is the sum of four, and none compares it with more than a few blocks:

1. higher bucket, x' below the lowest x of the row's block in the order of x: a table of counts by block and bucket;
2. higher bucket, x' equal to that lowest x: another such table;
3. higher bucket, x' above it: the points of the row's own block;
4. same bucket: the points of one block in the order of z. A block of rows in that order meets a run of such blocks, and
   all blocks of rows together meet fewer than 2K, since y rises with z.

All conditions are on values, so that ties need no care: a value that equals a border or a block's lowest x is never
counted with those between.

The K blocks lie over the devices in order. Those of the last H problems are numbered from the other end, in which they
too rise; within a block no order is needed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jasper_jax.losses.distributed_sort import sort_blocks
from jasper_jax.losses.relative_kernel import LANES, count
from jasper_jax.parameters.sharding import AXES, devices, present


class Share(NamedTuple):
    """What one device has: blocks `number * here` to `(number + 1) * here` of `parts * here`, each of `size`.

    ``axes``: of the mesh, over which the blocks lie; none where every device counts for all of them.
    """

    axes: tuple[str, ...]
    parts: int
    number: jax.Array | int
    here: int
    size: int
    interpret: bool

    @property
    def blocks(self) -> int:
        """K."""
        return self.parts * self.here

    def gather(self, of: jax.Array) -> jax.Array:
        """`[R, here, ...]` of each device -> `[R, K, ...]`."""
        return lax.all_gather(of, self.axes, axis=1, tiled=True) if self.axes else of

    def scatter_sum(self, of: jax.Array) -> jax.Array:
        """`[R, K, ...]` of each device -> their sum's own blocks, `[R, here, ...]`."""
        for axis in self.axes:  # one after the other: over 256 chips at once the TPU compiler makes an all-reduce
            of = lax.psum_scatter(of, axis, scatter_dimension=1, tiled=True)
        return of

    def own(self, of: jax.Array) -> jax.Array:
        """`[R, K', ...]` -> the part of this device, `[R, K' / parts, ...]`."""
        length = of.shape[1] // self.parts
        return lax.dynamic_slice_in_dim(of, self.number * length, length, axis=1)

    def count(self, rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...]) -> jax.Array:
        """The kernel."""
        return count(rows, columns, interpret=self.interpret)  # pyright: ignore[reportArgumentType]


def block_shape(pairs: int, parts: int) -> tuple[int, int]:
    """`(K, S)`: the number of blocks, a multiple of `parts`, and pairs per block, a multiple of 128; K·S >= pairs.

    About S = 2.8 √P: a row is compared with some 3·S points, and with some 16·K borders and entries of tables.
    """
    blocks = parts * max(1, round(pairs**0.5 / 2.8 / parts))
    return blocks, LANES * math.ceil(pairs / (blocks * LANES))


def blocked(
    similarities: jax.Array, margin: jax.Array, teacher: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """For each pair of texts, how the violations it takes part in push its similarity.

    Args:
      similarities: student similarities `[H, P]` (H student vectors share one teacher), float32.
      margin: `[H]`.
      teacher: teacher similarities `[P]`, float32.
      interpret: run the kernel in Python, without a TPU.

    Returns:
      `(push, lower)` as `jasper_jax.losses.relative_tiled.tiled` returns them, from the same comparisons.
    """
    pairs = similarities.shape[1]
    # The sort takes a power of 2. A mesh of another number of devices does all of the work on each.
    divided = devices() > 1 and devices().bit_count() == 1
    axes = present(AXES, jax.sharding.get_abstract_mesh()) if divided else ()
    parts = devices() if divided else 1
    blocks, size = block_shape(pairs, parts)

    def run(similarities: jax.Array, margin: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
        number = lax.axis_index(axes) if axes else 0
        share = Share(axes, parts, number, blocks // parts, size, interpret)
        return _counts(similarities, margin, teacher, share)

    if axes:
        # check_vma: kernels do not declare over which axes their results vary.
        run = jax.shard_map(run, in_specs=PartitionSpec(), out_specs=PartitionSpec(None, axes), check_vma=False)
    push, lower = run(similarities, margin, teacher)
    return push[:, :pairs], lower[:, :pairs]


def _counts(
    similarities: jax.Array, margin: jax.Array, teacher: jax.Array, share: Share
) -> tuple[jax.Array, jax.Array]:
    """`blocked` on one device: its part of the pairs, `[H, here * size]`."""
    heads, pairs = similarities.shape
    teachers = jnp.broadcast_to(teacher, similarities.shape)
    filling = ((0, 0), (0, share.blocks * share.size - pairs))  # infinite: marks what is no pair
    key = share.own(jnp.pad(jnp.concatenate([teachers, similarities]), filling, constant_values=jnp.inf))
    other = share.own(jnp.pad(jnp.concatenate([similarities, teachers]), filling, constant_values=jnp.inf))
    index = lax.broadcasted_iota(jnp.int32, key.shape, 1) + share.number * key.shape[1]
    # H rows in the order of the teacher, then H in that of the student.
    key, other, index = sort_blocks((key, other, index), share.axes, share.parts, interpret=share.interpret)
    key, other = (of.reshape(2 * heads, share.here, share.size) for of in (key, other))

    x, y, z = _problems(key[:heads], other[:heads], margin)
    target, student = share.gather(other[heads:]), share.gather(key[heads:])
    counted = (
        _higher_buckets(x, y, z, _lowest(student, margin), share),
        _same_bucket(target, student, margin, share),
    )
    # Back into the order of the pairs; both orders then agree, and their counts add up.
    lower, higher = (
        jnp.concatenate([of[half].reshape(heads, -1) for of in counted]) for half in (slice(heads), slice(heads, None))
    )
    _, lower, higher = sort_blocks((index, lower, higher), share.axes, share.parts, interpret=share.interpret)
    lower, higher = (of[:heads] + of[heads:] for of in (lower, higher))
    return higher - lower, lower


def _problems(target: jax.Array, student: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, y, z of the 2H problems, from `[H, K, S]` or, where their blocks differ, from `[2H, K, S]`."""
    heads = len(margin)
    if len(target) == heads:
        target, student = (jnp.concatenate([of, of]) for of in (target, student))
    rising = lax.broadcasted_iota(jnp.int32, student.shape, 0) < heads
    floor = student - jnp.tile(margin, 2)[:, None, None]
    return (
        jnp.where(rising, target, -target),
        jnp.where(rising, floor, -student),
        jnp.where(rising, student, -floor),
    )


def _turned(of: jax.Array) -> jax.Array:
    """`[2H, K, ...]` with the blocks of the last H problems numbered from the other end."""
    return jnp.concatenate([of[: len(of) // 2], of[len(of) // 2 :, ::-1]])


def _lowest(student: jax.Array, margin: jax.Array) -> jax.Array:
    """The borders `[2H, K]`, rising, of `[H, K, S]`."""
    return jnp.concatenate([student[:, :, 0], (margin[:, None] - student[:, :, -1])[:, ::-1]])


def _following(lowest: jax.Array) -> jax.Array:
    """Of `[R, K]`: that of the next block; infinite after the last."""
    return jnp.concatenate([lowest[:, 1:], jnp.full_like(lowest[:, :1], jnp.inf)], axis=1)


def _higher_buckets(x: jax.Array, y: jax.Array, z: jax.Array, borders: jax.Array, share: Share) -> jax.Array:
    """Counts 1 to 3 of `[2H, here, S]`."""
    problems, here, _ = x.shape
    weight = jnp.isfinite(x).astype(jnp.int32)
    y, z = (_buckets(of, borders, share) for of in (y, z))
    all_lowest = _turned(share.gather(jnp.min(x, axis=-1)))
    lowest, following = (share.own(_turned(of)) for of in (all_lowest, _following(all_lowest)))
    # Of the points of a block: 0 at its lowest x, 2 at that of the next block, 1 between.
    where = jnp.where(x == lowest[..., None], 0.0, jnp.where(x < following[..., None], 1.0, 2.0))

    # How many of a block's points are up to a place and in a higher bucket than b, with (place, b) as rows.
    width = LANES * math.ceil((2 * share.blocks + 2) / LANES)
    bucket = jnp.arange(-1.0, width - 1)
    asked = jnp.repeat(jnp.asarray([0.5, 1.5, 2.5]), width), jnp.tile(bucket, 3)
    asked = tuple(jnp.broadcast_to(of, (problems, 1, 3 * width)) for of in asked)
    higher = share.count(asked, (where, z, weight)).reshape(problems, here, 3, width)
    in_bucket = higher - jnp.pad(higher[..., 1:], ((0, 0),) * 3 + ((0, 1),))  # row b + 1 is that of bucket b + 1
    by_place = _turned(share.gather(jnp.diff(in_bucket, axis=2, prepend=0)))

    before = jnp.pad(jnp.cumsum(by_place, axis=1, dtype=jnp.int32), ((0, 0), (1, 0), (0, 0), (0, 0)))
    block = jnp.broadcast_to(jnp.arange(share.blocks, dtype=jnp.int32), all_lowest.shape)

    def up_to(block: jax.Array, place: int) -> jax.Array:  # the points at this place of the blocks before this
        return jnp.take_along_axis(before[:, :, place], share.own(_turned(block))[..., None], axis=1)

    def below(compare: jax.Array) -> jax.Array:  # those with x below the lowest, or up to it
        lower_blocks = jnp.sum(compare, axis=-1, dtype=jnp.int32)
        return up_to(lower_blocks, 0) + up_to(block, 1) + up_to(jnp.maximum(lower_blocks - 1, 0), 2)

    less = below(all_lowest[:, None, :] < all_lowest[..., None])
    equal = below(all_lowest[:, None, :] <= all_lowest[..., None]) - less

    table = (problems, here, width)
    columns = (
        jnp.concatenate([jnp.full(table, -jnp.inf), jnp.broadcast_to(lowest[..., None], table), x], axis=-1),
        jnp.concatenate([jnp.broadcast_to(bucket + 1, table)] * 2 + [z], axis=-1),
        jnp.concatenate([less, equal, jnp.where(where == 1, weight, 0)], axis=-1),
    )
    return share.count((x, y), columns)


def _buckets(values: jax.Array, borders: jax.Array, share: Share) -> jax.Array:
    """The buckets of `[R, here, S]`, as float32: how many borders are below a value, and once more those up to it."""
    padding = ((0, 0), (0, -2 * share.blocks % LANES))
    none = jnp.full_like(borders, jnp.inf)
    columns = (  # K + those below - those above
        jnp.pad(jnp.concatenate([borders, -none], axis=1), padding),
        jnp.pad(jnp.concatenate([none, borders], axis=1), padding),
        jnp.pad(jnp.concatenate([jnp.ones_like(borders), -jnp.ones_like(borders)], axis=1), padding).astype(jnp.int32),
    )
    counted = share.count((values, values), tuple(of[:, None] for of in columns))
    return (counted + share.blocks).astype(jnp.float32)


def _same_bucket(target: jax.Array, student: jax.Array, margin: jax.Array, share: Share) -> jax.Array:
    """Count 4 of the own blocks, `[2H, here, S]`, from all blocks `[H, K, S]` in the order of the student."""
    heads, blocks, size = student.shape
    border = _lowest(student, margin)
    ends = student[:, :, :: size - 1]  # of every block, the lowest and the highest
    y_ends = jnp.concatenate([ends - margin[:, None, None], -ends[:, ::-1, ::-1]])

    # The blocks of points that each block of rows meets, one after the other: the units of work.
    block_of = jnp.sum(border[:, None, None, :] <= y_ends[..., None], axis=-1, dtype=jnp.int32)
    first, last = jnp.moveaxis(jnp.maximum(block_of - 1, 0), -1, 0)
    end = jnp.cumsum(last - first + 1, axis=1, dtype=jnp.int32)
    unit = share.own(lax.broadcasted_iota(jnp.int32, (2 * heads, 2 * blocks), 1))
    rows = jnp.sum(end[:, None, :] <= unit[..., None], axis=-1, dtype=jnp.int32)
    needed = (rows < blocks)[..., None]
    rows = jnp.minimum(rows, blocks - 1)
    points = jnp.clip(jnp.take_along_axis(last - end + 1, rows, axis=1) + unit, 0, blocks - 1)

    def take(number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:  # x, y, z of these blocks
        number = jnp.concatenate([number[:heads], blocks - 1 - number[heads:]])[..., None]
        x, s = (jnp.take_along_axis(jnp.concatenate([of, of]), number, axis=1) for of in (target, student))
        return _problems(x, s, margin)

    x, y, _ = take(rows)
    point_x, _, z = take(points)
    low, high = (jnp.take_along_axis(of, points, axis=1)[..., None] for of in (border, _following(border)))
    weight = ((z > low) & (z < high) & jnp.isfinite(point_x)).astype(jnp.int32)
    counted = share.count((x, jnp.where(needed & (y > low), y, jnp.inf)), (point_x, z, weight))
    problem = lax.broadcasted_iota(jnp.int32, rows.shape, 0)
    total = jnp.zeros((2 * heads, blocks, size), jnp.int32).at[problem, rows].add(counted)
    return share.scatter_sum(_turned(total))
