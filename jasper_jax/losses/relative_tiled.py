"""Order violations counted the plain way: all pairs of texts against all, a few columns at a time.

Work O(P²), memory O(P) per column of a tile, no sort and no gather: the form for few pairs, and for
accelerators, whose compilers dislike gathers. Rows never talk to each other: on a mesh every device may count for its
share of them, and counts are whole numbers, so the result is the same to the bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jasper_jax.parameters.sharding import AXES, constrain, devices

# Columns per tile. A CPU writes the tile to memory, so it has to stay in the cache; elsewhere the
# comparison is fused into the sum, and wide tiles spare launches, up to a bound on what one tile could hold.
CPU_COLUMNS = 16
MAX_COLUMNS = 1024
MAX_TILE = 1 << 25


def tiled(
    similarities: jax.Array,
    margin: jax.Array,
    teacher: jax.Array,
    *,
    columns: int | None = None,
    divided: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """For each pair of texts, how the violations it takes part in push its similarity.

    Args:
      similarities: student similarities `[H, P]` (H student vectors share one teacher).
      margin: `[H]`.
      teacher: teacher similarities `[P]`.
      columns: columns per tile; by default as many as MAX_TILE allows.
      divided: whether the devices of the mesh share the rows out; else each counts for all of them.

    Returns:
      `(push, lower)`, int32 `[H, P]`. A violation is a (p, q) with t_p > t_q and s_q > s_p - margin:
      `lower[p]` counts those in which p is the better pair, `push[p]` counts plus one for each in which it is
      the worse pair and minus one for each in which it is the better.
    """
    heads, pairs = similarities.shape
    parts = devices() if divided else 1
    rows = -(-pairs // parts)  # of one device
    if columns is None:
        columns = min(MAX_COLUMNS, max(CPU_COLUMNS, MAX_TILE // (heads * rows)))
    columns = min(columns, pairs)
    tiles = -(-pairs // columns)
    lay = constrain if divided else lambda x, *axes: x
    similarities, teacher = lay(similarities), lay(teacher)  # the columns are the same on every device
    floor = similarities - margin[:, None]

    def share(x: jax.Array, fill: float) -> jax.Array:  # [..., P] -> [..., rows * parts]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, rows * parts - pairs)], constant_values=fill)
        return lay(x, *(None,) * (x.ndim - 1), AXES)

    def tile(x: jax.Array, fill: float) -> jax.Array:  # [..., P] -> [tiles, ..., columns]
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, tiles * columns - pairs)], constant_values=fill)
        return lay(jnp.moveaxis(x.reshape(*x.shape[:-1], tiles, columns), -2, 0))

    # A NaN is neither above nor below: the padding of rows and of columns never counts.
    row, row_floor, row_teacher = share(similarities, 0.0), share(floor, 0.0), share(teacher, jnp.nan)

    def add(counts: tuple[jax.Array, jax.Array], column: tuple[jax.Array, jax.Array, jax.Array]):
        push, lower = counts
        student, student_floor, target = column
        above = target[None, None, :] > row_teacher[None, :, None]
        below = target[None, None, :] < row_teacher[None, :, None]
        as_worse = above & (row[:, :, None] > student_floor[:, None, :])
        as_better = below & (student[:, None, :] > row_floor[:, :, None])
        # Both counts in one sum, 16 bits each: a tile is far narrower than 2^15.
        packed = jnp.where(as_worse, 1 << 16, jnp.where(as_better, 1, 0)).astype(jnp.int32)
        packed = jnp.sum(packed, axis=-1, dtype=jnp.int32)
        better = packed & 0xFFFF
        return (push + (packed >> 16) - better, lower + better), None

    zeros = share(jnp.zeros((heads, pairs), jnp.int32), 0)
    columns_of = (tile(similarities, 0.0), tile(floor, 0.0), tile(teacher, jnp.nan))
    (push, lower), _ = lax.scan(add, (zeros, zeros), columns_of)
    return lay(push)[:, :pairs], lay(lower)[:, :pairs]
