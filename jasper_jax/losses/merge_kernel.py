"""Bitonic sorting (Batcher, 1968), on TPU in fast memory: Pallas kernels.

A row that rises and then falls, or the other way round, is sorted in log₂n passes, each of which compares every entry
with the one at half the distance of the pass before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
ROWS = 8
"""Of a vector register; as many go through the kernel together."""
TOGETHER = 8
"""Chunks of 128 entries whose last passes are made in registers."""
LARGEST = 1 << 19
"""Numbers per operand that fit fast memory, coming and going."""


def sort_runs(
    operands: Sequence[jax.Array], keys: int, *, kernel: bool, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Sort every 128 entries of rows `[R, n]` by themselves, the odd runs from the highest to the lowest; n a power of
    2 of at least 256, else as `merge`."""
    shape = rows, width = operands[0].shape
    if kernel:
        # Full registers, in fast memory.
        while width > 2 * LANES and (rows % ROWS or width * ROWS > LARGEST):
            rows, width = 2 * rows, width // 2
        runs = _call(partial(_sort_runs, keys), [of.reshape(rows, width) for of in operands], (), interpret)
        return tuple(of.reshape(shape) for of in runs)
    runs = [of.reshape(-1, LANES) for of in operands]
    falling = jnp.arange(len(runs[0])) % 2 == 1
    return tuple(of.reshape(shape) for of in merge(runs, falling, keys, kernel=False))


def merge(operands: Sequence[jax.Array], falling: jax.Array, keys: int, *, kernel: bool) -> tuple[jax.Array, ...]:
    """Sort bitonic rows.

    Args:
      operands: one or two keys, the second deciding between equal first ones, then what moves with them: each `[R, n]`,
        n a power of 2 of at least 128. Along the last dimension, the keys rise and then fall or the other way round; no
        two entries of a row have the same keys.
      falling: bool `[R]`, the rows to sort from the highest to the lowest.
      keys: how many.
      kernel: in the kernel; else by `lax.sort`.

    Returns:
      As `operands`.
    """
    if not kernel:
        rising = lax.sort(tuple(operands), dimension=1, num_keys=keys, is_stable=False)
        return tuple(jnp.where(falling[:, None], of[:, ::-1], of) for of in rising)
    shape = operands[0].shape
    while operands[0].shape[1] * _rows_together(len(falling)) > LARGEST:
        # Too wide for fast memory. Halves that have been compared are two bitonic rows.
        halves = [of.reshape(-1, 2, of.shape[1] // 2) for of in operands]
        swapped = exchange([of[:, 0] for of in halves], [of[:, 1] for of in halves], falling[:, None], keys)
        operands = [jnp.stack(pair, axis=1).reshape(-1, pair[0].shape[1]) for pair in zip(*swapped)]
        falling = jnp.repeat(falling, 2)
    return tuple(of.reshape(shape) for of in merge_in_kernel(operands, falling, keys))


def merge_in_kernel(
    operands: Sequence[jax.Array], falling: jax.Array, keys: int, *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """`merge` of rows that fit; `interpret`: run the kernel in Python, without a TPU."""
    wide = jnp.broadcast_to(falling[:, None], (len(falling), LANES)).astype(jnp.int32)
    return _call(partial(_merge, keys), operands, (wide,), interpret)


def _call(kernel: Any, operands: Sequence[jax.Array], before: tuple[jax.Array, ...], interpret: bool) -> Any:
    """Run a kernel on some rows after the other: of `before` `[R, 128]`, then of the operands."""
    height, width = operands[0].shape
    rows = _rows_together(height)
    block = pl.BlockSpec((rows, width), lambda row: (row, 0))
    return pl.pallas_call(
        kernel,
        grid=(height // rows,),
        in_specs=[pl.BlockSpec((rows, LANES), lambda row: (row, 0)) for _ in before] + [block] * len(operands),
        out_specs=[block] * len(operands),
        out_shape=[jax.ShapeDtypeStruct(of.shape, of.dtype) for of in operands],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=64 << 20),
        interpret=interpret,
        name=f"bitonic{kernel.func.__name__}",
    )(*before, *operands)


def exchange(
    first: Sequence[jax.Array], second: Sequence[jax.Array], falling: jax.Array, keys: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Entry by entry, the lower of two and the higher, or the other way round where `falling`."""
    swap = below(second, first, keys) != falling
    return (
        [jnp.where(swap, b, a) for a, b in zip(first, second)],
        [jnp.where(swap, a, b) for a, b in zip(first, second)],
    )


def below(a: Sequence[jax.Array], b: Sequence[jax.Array], keys: int) -> jax.Array:
    """Whether the entries of `a` come before those of `b`, by the first one or two."""
    if keys == 1:
        return a[0] < b[0]
    return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))


def _rows_together(rows: int) -> int:
    return ROWS if rows % ROWS == 0 else rows


class _Chunks:
    """128 entries of each row, of the operands that a kernel reads and of those that it writes."""

    def __init__(self, refs: Sequence[Any]):
        self.source, self.out = refs[: len(refs) // 2], refs[len(refs) // 2 :]
        self.number = self.out[0].shape[1] // LANES
        self.together = min(TOGETHER, self.number)

    def load(self, chunk: jax.Array) -> list[jax.Array]:
        return [of[:, pl.ds(pl.multiple_of(chunk * LANES, LANES), LANES)] for of in self.source]

    def store(self, chunk: jax.Array, values: Sequence[jax.Array]) -> None:
        for of, value in zip(self.out, values):
            of[:, pl.ds(pl.multiple_of(chunk * LANES, LANES), LANES)] = value

    def for_groups(self, body: Any) -> None:
        """Of chunks, or of pairs of chunks, half as many at a time."""
        lax.fori_loop(0, self.number // self.together, lambda group, _: body(group), None)


def _merge(keys: int, fall: Any, *refs: Any) -> None:
    falling, chunks = fall[...] != 0, _Chunks(refs)
    together = chunks.together

    def far(distance: int, group: jax.Array) -> None:  # all loads first: none waits for a store
        pairs = [group * (together // 2) + n for n in range(together // 2)]
        ones = [pair + (pair & -distance) for pair in pairs]  # 0, 1, ... of the chunks without this bit
        values = [(chunks.load(one), chunks.load(one + distance)) for one in ones]
        for one, (a, b) in zip(ones, values):
            a, b = exchange(a, b, falling, keys)
            chunks.store(one, a)
            chunks.store(one + distance, b)

    def near(group: jax.Array) -> None:
        values = [chunks.load(group * together + n) for n in range(together)]
        distance = together // 2
        while distance:
            for n in range(together):
                if not n & distance:
                    values[n], values[n + distance] = exchange(values[n], values[n + distance], falling, keys)
            distance //= 2
        for n, value in enumerate([_within(value, LANES, falling, keys) for value in values]):
            chunks.store(group * together + n, value)

    distance = chunks.number // 2
    while distance >= together:
        chunks.for_groups(partial(far, distance))
        chunks.source, distance = chunks.out, distance // 2
    chunks.for_groups(near)


def _sort_runs(keys: int, *refs: Any) -> None:
    chunks = _Chunks(refs)

    def group(number: jax.Array) -> None:
        values = [chunks.load(number * chunks.together + n) for n in range(chunks.together)]
        lane = lax.broadcasted_iota(jnp.int32, values[0][0].shape, 1)
        for n, value in enumerate(values):
            length = 2
            while length < LANES:
                value, length = _within(value, length, lane & length != 0, keys), 2 * length
            chunks.store(number * chunks.together + n, _within(value, LANES, n % 2 == 1, keys))

    chunks.for_groups(group)


def _within(values: list[jax.Array], length: int, falling: jax.Array | bool, keys: int) -> list[jax.Array]:
    """Merge runs of this length within chunks `[rows, 128]`."""
    lane = lax.broadcasted_iota(jnp.int32, values[0].shape, 1)
    distance = length // 2
    while distance:
        first = lane & distance == 0
        others = [jnp.where(first, pltpu.roll(v, LANES - distance, 1), pltpu.roll(v, distance, 1)) for v in values]
        swap = below(others, values, keys) == (first != falling)
        values = [jnp.where(swap, other, v) for other, v in zip(others, values)]
        distance //= 2
    return values
