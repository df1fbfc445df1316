"""Order violations counted by blocks: O(P^1.5) comparisons in fast memory and one sort, shared out over the devices.

Each count that the loss needs has the form: for a row (x, y), how many of the P points (x', z) have `x' < x` and `z > y`.
For the violations in which p is the better pair, rows are (t, s - margin) and points (t, s). For those in which it is the
worse one, rows are (-t, -s) and points (-t, margin - s). So these are 2H problems of one form, and y rises with z.

The points are cut into K blocks of S, once in the order of x and once in the order of z. The first z of every block is a
*border*; the *bucket* of a value is 2j + 1 strictly between borders, even where it equals one, and buckets are ordered as
values are. So `z > y` where z is in a higher bucket than y, or where both are between the same two borders. The count of a
row is the sum of four, and none compares it with more than a few blocks:

1. higher bucket, x' below the first x of the row's block in the order of x: a table of counts by block and bucket;
2. higher bucket, x' equal to that first x: another such table;
3. higher bucket, x' above it: the points of the row's own block;
4. same bucket: the points of one block in the order of z. A block of rows in that order meets a run of such blocks, and all
   blocks of rows together meet fewer than 2K, since y rises with z.

All conditions are on values, so that ties need no care: a value that equals a border or a block's first x is never counted
with those between.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jasper_jax.losses.relative_kernel import LANES, count
from jasper_jax.parameters.sharding import ALL, constrain, devices, present

Blocks = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""x, y, z (float32) and the weight of the point (int32: 1, or 0 for padding), each `[R, K, S]`."""


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
    heads, pairs = similarities.shape
    blocks, size = block_shape(pairs, devices())
    key, other, index = _sorted(similarities, teacher, blocks * size)

    def problems(target: jax.Array, student: jax.Array, index: jax.Array) -> Blocks:  # from [H, K·S]
        floor, weight = student - margin[:, None], (index < pairs).astype(jnp.int32)
        # The second half in reverse, so that it is in rising order too.
        both = (
            jnp.concatenate([target, -target[:, ::-1]]),
            jnp.concatenate([floor, -student[:, ::-1]]),
            jnp.concatenate([student, -floor[:, ::-1]]),
            jnp.concatenate([weight, weight[:, ::-1]]),
        )
        x, y, z, weight = (constrain(of.reshape(2 * heads, blocks, size), None, ALL) for of in both)
        return x, y, z, weight

    by_x = problems(key[:heads], other[:heads], index[:heads])
    by_z = problems(other[heads:], key[heads:], index[heads:])
    counts = _higher_buckets(by_x, by_z[2][:, :, 0], interpret), _same_bucket(by_z, interpret)
    lower = jnp.concatenate([of[:heads].reshape(heads, -1) for of in counts])
    higher = jnp.concatenate([of[heads:].reshape(heads, -1)[:, ::-1] for of in counts])
    return _unsorted(higher - lower, index, pairs), _unsorted(lower, index, pairs)


def _sorted(similarities: jax.Array, teacher: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys, the other side's similarities and the pairs' numbers, each `[2H, length]`: H rows in the order of the teacher,
    then H in that of the student. Padding is infinite, with numbers from P on. The devices sort different rows."""
    heads, pairs = similarities.shape
    teachers = jnp.broadcast_to(teacher, similarities.shape)
    key = jnp.concatenate([teachers, similarities])
    other = jnp.concatenate([similarities, teachers])
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: mesh.shape[axis] for axis in present(ALL, mesh)}
    choices = [group for n in range(len(sizes) + 1) for group in itertools.combinations(sizes, n)]
    extents = {group: math.prod(sizes[axis] for axis in group) for group in choices}
    group = min(choices, key=lambda group: (math.ceil(2 * heads / extents[group]), extents[group]))
    rows = extents[group] * math.ceil(2 * heads / extents[group])

    def lay(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, rows - 2 * heads), (0, length - pairs)), constant_values=jnp.inf)
        return constrain(x, group)

    index = constrain(lax.broadcasted_iota(jnp.int32, (rows, length), 1), group)
    ordered = lax.sort((lay(key), lay(other), index), dimension=1, num_keys=1, is_stable=False)
    key, other, index = (constrain(constrain(x, group)[: 2 * heads]) for x in ordered)
    return key, other, index


def _higher_buckets(by_x: Blocks, borders: jax.Array, interpret: bool) -> jax.Array:
    """Counts 1 to 3, `[R, K, S]`. ``borders``: `[R, K]`, rising."""
    x, y, z, weight = by_x
    problems, blocks, _ = x.shape
    y, z = (_buckets(of, borders, interpret) for of in (y, z))
    first = x[:, :, 0]  # and the last block's next is infinite
    after = jnp.concatenate([first[:, 1:], jnp.full_like(first[:, :1], jnp.inf)], axis=1)
    # Of the points of a block: 0 at its first x, 2 at that of the next block, 1 between.
    where = jnp.where(x == first[..., None], 0.0, jnp.where(x < after[..., None], 1.0, 2.0))

    # How many of a block's points are up to a place, in a higher bucket than b: as above, with (place, b) as rows.
    width = LANES * math.ceil((2 * blocks + 2) / LANES)
    bucket = jnp.arange(-1.0, width - 1)
    asked = jnp.repeat(jnp.asarray([0.5, 1.5, 2.5]), width), jnp.tile(bucket, 3)
    asked = tuple(jnp.broadcast_to(of, (problems, 1, 3 * width)) for of in asked)
    higher = _count(asked, (where, z, weight), interpret).reshape(problems, blocks, 3, width)
    in_bucket = higher[..., :-1] - jnp.roll(higher, -1, axis=-1)[..., :-1]
    in_bucket = jnp.pad(in_bucket, ((0, 0),) * 3 + ((0, 1),))
    at_first, between, at_after = jnp.split(jnp.diff(in_bucket, axis=2, prepend=0), 3, axis=2)

    def before(of: jax.Array, block: jax.Array) -> jax.Array:  # summed over the blocks before this
        total = jnp.pad(jnp.cumsum(of[:, :, 0], axis=1, dtype=jnp.int32), ((0, 0), (1, 0), (0, 0)))
        return jnp.take_along_axis(total, block[..., None], axis=1)

    less = jnp.sum(first[:, None, :] < first[..., None], axis=-1, dtype=jnp.int32)  # of the blocks' first x
    up_to = jnp.sum(first[:, None, :] <= first[..., None], axis=-1, dtype=jnp.int32)
    earlier = before(between, jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.int32), less.shape))
    below = before(at_first, less) + earlier + before(at_after, jnp.maximum(less - 1, 0))
    equal = before(at_first, up_to) + earlier + before(at_after, jnp.maximum(up_to - 1, 0)) - below

    table = (problems, blocks, width)
    columns = (
        jnp.concatenate([jnp.full(table, -jnp.inf), jnp.broadcast_to(first[..., None], table), x], axis=-1),
        jnp.concatenate([jnp.broadcast_to(bucket + 1, table)] * 2 + [z], axis=-1),
        jnp.concatenate([below, equal, jnp.where(where == 1, weight, 0)], axis=-1),
    )
    return _count((x, y), columns, interpret)


def _buckets(values: jax.Array, borders: jax.Array, interpret: bool) -> jax.Array:
    """The buckets of `[R, K, S]`, as float32: how many borders are below a value, and once more those up to it."""
    blocks = borders.shape[1]
    padding = ((0, 0), (0, -2 * blocks % LANES))
    none = jnp.full_like(borders, jnp.inf)
    columns = (  # those below, less those above
        jnp.pad(jnp.concatenate([borders, -none], axis=1), padding),
        jnp.pad(jnp.concatenate([none, borders], axis=1), padding),
        jnp.pad(jnp.concatenate([jnp.ones_like(borders), -jnp.ones_like(borders)], axis=1), padding).astype(jnp.int32),
    )
    counted = _count((values, values), tuple(of[:, None] for of in columns), interpret)
    return (counted + blocks).astype(jnp.float32)


def _same_bucket(by_z: Blocks, interpret: bool) -> jax.Array:
    """Count 4, `[R, K, S]`."""
    x, y, z, weight = by_z
    problems, blocks, size = x.shape
    border = z[:, :, 0]
    after = jnp.concatenate([border[:, 1:], jnp.full_like(border[:, :1], jnp.inf)], axis=1)
    weight = jnp.where((z > border[..., None]) & (z < after[..., None]), weight, 0)

    def block_of(y: jax.Array) -> jax.Array:  # [R, K] -> the block whose bucket this is
        return jnp.maximum(jnp.sum(border[:, None, :] <= y[..., None], axis=-1, dtype=jnp.int32) - 1, 0)

    # The blocks of points that each block of rows meets, one after the other: the units of work.
    first, last = block_of(y[:, :, 0]), block_of(y[:, :, -1])
    end = jnp.cumsum(last - first + 1, axis=1, dtype=jnp.int32)
    unit = lax.broadcasted_iota(jnp.int32, (problems, 2 * blocks), 1)
    rows = jnp.sum(end[:, None, :] <= unit[..., None], axis=-1, dtype=jnp.int32)
    needed = rows < blocks
    rows = jnp.minimum(rows, blocks - 1)
    points = jnp.take_along_axis(last - end + 1, rows, axis=1) + unit
    points = jnp.where(needed, points, blocks - 1)

    def take(of: jax.Array, number: jax.Array) -> jax.Array:
        taken = jnp.take_along_axis(constrain(of), number[..., None], axis=1)
        return constrain(taken, None, ALL)

    floor = jnp.take_along_axis(border, points, axis=1)[..., None]
    unit_y = take(y, rows)
    unit_y = jnp.where(needed[..., None] & (unit_y > floor), unit_y, jnp.inf)
    counted = _count((take(x, rows), unit_y), tuple(take(of, points) for of in (x, z, weight)), interpret)
    problem = lax.broadcasted_iota(jnp.int32, rows.shape, 0)
    return jnp.zeros((problems, blocks, size), jnp.int32).at[problem, rows].add(counted)


def _count(
    rows: tuple[jax.Array, ...], columns: tuple[jax.Array, ...], interpret: bool
) -> jax.Array:
    """The kernel; the devices of a mesh share the blocks out."""
    run = lambda *of: count(of[:2], of[2:], interpret=interpret)  # noqa: E731
    mesh = jax.sharding.get_abstract_mesh()
    if devices() > 1:
        everyone = present(ALL, mesh)
        specs = tuple(PartitionSpec(None, everyone if of.shape[1] > 1 else None) for of in (*rows, *columns))
        # check_vma: kernels do not declare over which axes their results vary.
        run = jax.shard_map(run, in_specs=specs, out_specs=PartitionSpec(None, everyone), check_vma=False)
    return run(*rows, *columns)


def _unsorted(values: jax.Array, index: jax.Array, pairs: int) -> jax.Array:
    """`[2H, K·S]` in sorted order -> `[H, P]`, the sum of both orders."""
    heads = values.shape[0] // 2
    head = lax.broadcasted_iota(jnp.int32, values.shape, 0) % heads
    return jnp.zeros((heads, pairs), jnp.int32).at[head, index].add(values, mode="drop")
