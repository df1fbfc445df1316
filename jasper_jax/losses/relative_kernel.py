"""Weighted dominance counts, tile by tile: a Pallas kernel for TPU.

A block of rows and a block of columns are compared in fast memory; only the counts of the rows are written out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
"""Blocks are multiples of this."""

UNROLL = 4
"""Chunks of 128 columns per iteration of the inner loop."""


def count(
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array, jax.Array],
    *,
    interpret: bool = False,
) -> jax.Array:
    """Compare each block of rows with the block of columns of the same number; add up the weights of some columns.

    Args:
      rows: `(x, y)`, float32 `[R, U, S]`: U blocks of S rows for each of R problems, S a multiple of 128.
      columns: `(x, z, weight)`, float32, float32 and int32 `[R, U, C]`, C a multiple of 128. U is 1 in the rows or in
        the columns where all blocks of the other side share this one.
      interpret: run the kernel in Python, without a TPU.

    Returns:
      int32 `[R, U, S]`: for a row (x, y), the sum of the weights of the columns with `column x < x` and `z > y`.
    """
    problems, row_blocks, size = rows[0].shape
    _, column_blocks, width = columns[0].shape
    units = max(row_blocks, column_blocks)

    def spec(blocks: int, length: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, length // LANES, LANES), lambda r, u: (r, u if blocks > 1 else 0, 0, 0))

    of_rows, of_columns = spec(row_blocks, size), spec(column_blocks, width)
    counts = pl.pallas_call(
        _kernel,
        grid=(problems, units),
        in_specs=[of_rows, of_rows, of_columns, of_columns, of_columns],
        out_specs=spec(units, size),
        out_shape=jax.ShapeDtypeStruct((problems, units, size // LANES, LANES), jnp.int32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="relative_count",
    )(*(x.reshape(*x.shape[:-1], -1, LANES) for x in (*rows, *columns)))
    return counts.reshape(problems, units, size)


def _kernel(row_x: Any, row_y: Any, column_x: Any, column_z: Any, weight: Any, counts: Any) -> None:
    chunks = column_x.shape[2]
    unroll = next(n for n in range(UNROLL, 0, -1) if chunks % n == 0)

    def chunk(ref: Any, k: jax.Array) -> jax.Array:  # [1, 128]
        return ref[0, 0, pl.ds(k, 1), :]

    def upright(x: jax.Array) -> jax.Array:  # [1, 128] -> [128, 128]: row i is x[i] throughout
        return jnp.broadcast_to(x, (LANES, LANES)).T

    def group(g: jax.Array, carry: None) -> None:  # of 128 rows
        x, y = upright(chunk(row_x, g)), upright(chunk(row_y, g))

        def add(k: jax.Array, total: jax.Array) -> jax.Array:
            for n in range(unroll):
                i = k * unroll + n
                counted = (chunk(column_x, i) < x) & (chunk(column_z, i) > y)
                total += jnp.where(counted, chunk(weight, i), 0)
            return total

        total = lax.fori_loop(0, chunks // unroll, add, jnp.zeros((LANES, LANES), jnp.int32))
        counts[0, 0, pl.ds(g, 1), :] = jnp.sum(total.T, axis=0, keepdims=True)

    lax.fori_loop(0, row_x.shape[2], group, None)
