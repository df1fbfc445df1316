"""The blocked form of the relative loss: the kernel is interpreted, and counts exactly as the tiled form."""

from __future__ import annotations

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.losses import merge_kernel, relative_blocked
from jasper_jax.losses.distributed_sort import sort_blocks
from jasper_jax.losses.relative import pair_order, relative_from_similarities
from jasper_jax.losses.relative_blocked import block_shape, blocked
from jasper_jax.losses.relative_kernel import count
from jasper_jax.losses.relative_tiled import tiled

PAIRS = 500
SHAPES = [(4, 128), (7, 128), (2, 256)]
"""Blocks: as many as needed, three of padding alone, of two chunks."""


@partial(jax.jit, static_argnums=0)
def _blocked(shape: tuple[int, int], *arguments: jax.Array) -> tuple[jax.Array, jax.Array]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relative_blocked, "block_shape", lambda pairs, parts: shape)
        return blocked(*arguments, interpret=True)


_tiled = jax.jit(tiled)


def check(student: np.ndarray, teacher: np.ndarray, margin: list[float], shape: tuple[int, int] = SHAPES[0]) -> None:
    arguments = student, np.float32(margin), teacher
    found, expected = _blocked(shape, *arguments), _tiled(*arguments)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0.6, 0.1, PAIRS).astype(np.float32)
    return teacher + rng.normal(0, 0.03, (2, PAIRS)).astype(np.float32), teacher


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("digits", [6, 2, 1])
def test_counts_as_the_tiled_form(shape, digits):
    student, teacher = draw(0)
    check(np.round(student, digits), np.round(teacher, digits), [0.015, 0.1], shape)


ASCENDING = np.linspace(-1, 1, PAIRS, dtype=np.float32)
SIDES = {
    "ascending": ASCENDING,
    "descending": ASCENDING[::-1].copy(),
    "one value": np.full(PAIRS, 0.25, np.float32),
    "two values": np.where(np.arange(PAIRS) % 3 == 0, np.float32(1), np.float32(-1)),
    "both zeros": np.where(np.arange(PAIRS) % 2 == 0, np.float32(0.0), np.float32(-0.0)),
    "ties across borders": np.round(ASCENDING * 2) / 2,
    "ties within blocks": np.round(ASCENDING * 64) / 64,
    "a few outliers": np.where(np.arange(PAIRS) % 99 == 0, ASCENDING, np.float32(0.5)),
}


@pytest.mark.parametrize("margin", [[0.0, 1 / 64], [10.0, -0.5]])
@pytest.mark.parametrize("of_student", SIDES)
@pytest.mark.parametrize("of_teacher", SIDES)
def test_adversarial(of_teacher, of_student, margin):
    """All rows of a block may meet all blocks, or none; a border may be the value of every pair."""
    student = SIDES[of_student]
    check(np.stack([student, np.roll(student, 177)]), SIDES[of_teacher], margin)


def test_the_loss_and_its_gradient_have_the_same_bits():
    student, teacher = draw(1)
    order = pair_order(jnp.asarray(np.round(teacher, 2)))

    def loss(method: str, student: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(
            lambda s: relative_from_similarities(s, order, jnp.asarray([0.015, 0.1]), method), student
        )
        return value, pull(jnp.ones_like(value))[0]

    found, expected = (jax.jit(partial(loss, method))(student) for method in ("blocked", "tiled"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nan_is_not_hidden():
    student, teacher = draw(2)
    student[0, 4] = np.nan
    value = jax.jit(lambda s, t: relative_from_similarities(s, pair_order(t), method="blocked"))
    np.testing.assert_array_equal(np.isnan(value(student, teacher)), [True, False])
    assert np.isnan(value(student, np.where(np.arange(PAIRS) == 7, np.float32(np.nan), teacher))).all()


def test_takes_float32_alone():
    order = pair_order(jnp.zeros(6))
    with pytest.raises(ValueError, match="blocked takes float32 similarities, got bfloat16"):
        relative_from_similarities(jnp.zeros((2, 6), jnp.bfloat16), order, method="blocked")


@pytest.mark.parametrize(("pairs", "parts"), [(2, 1), (4371, 8), (8128, 1), (2096128, 256), (8386560, 16)])
def test_blocks_hold_all_pairs(pairs, parts):
    blocks, size = block_shape(pairs, parts)
    assert blocks % parts == 0
    assert size % 128 == 0
    assert pairs <= blocks * size < pairs + 129 * blocks


@pytest.mark.parametrize("shared", ["rows", "columns", "neither"])
def test_the_kernel(shared):
    rng = np.random.default_rng(3)
    row_blocks, column_blocks = (1 if shared == side else 3 for side in ("rows", "columns"))
    rows = rng.integers(-4, 5, (2, 2, row_blocks, 256)).astype(np.float32)
    columns = rng.integers(-4, 5, (2, 2, column_blocks, 384)).astype(np.float32)
    weight = rng.integers(-3, 9, (2, column_blocks, 384)).astype(np.int32)
    found = jax.jit(partial(count, interpret=True))(tuple(rows), (*columns, weight))
    x, y = rows[..., :, None]
    column_x, z = columns[..., None, :]
    np.testing.assert_array_equal(found, (weight[:, :, None] * ((column_x < x) & (z > y))).sum(-1))


@pytest.mark.parametrize("shape", [(2, 128), (8, 512), (3, 1024)])
def test_the_merge_keeps_every_pair_once(shape):
    """With ties within and between the blocks: the halves are sorted, and each number moves with its key."""
    assert merge_kernel.fits(shape)
    rng = np.random.default_rng(4)
    keys = np.sort(rng.integers(-40, 40, (2, *shape)).astype(np.float32), axis=-1)
    numbers = np.arange(keys.size, dtype=np.int32).reshape(keys.shape)
    blocks = [(keys[n], numbers[n]) for n in range(2)]
    run = jax.jit(partial(merge_kernel.merge, interpret=True))
    low, high = run(*blocks, jnp.asarray(True)), run(*blocks[::-1], jnp.asarray(False))
    merged, moved = (np.concatenate(of, axis=1) for of in zip(low, high))
    np.testing.assert_array_equal(merged, np.sort(np.concatenate(keys, axis=1), axis=1))
    np.testing.assert_array_equal(np.sort(moved, axis=1), np.sort(np.concatenate(numbers, axis=1), axis=1))
    np.testing.assert_array_equal(keys.reshape(-1)[moved], merged)


@pytest.mark.parametrize("shape", [(8, 64), (8, 384), (8, 1 << 17)])
def test_the_merge_leaves_other_blocks_to_the_sort(shape):
    assert not merge_kernel.fits(shape)


def test_sort_refuses_what_is_no_power_of_2():
    with pytest.raises(ValueError, match="parts: expected a power of 2, got 6"):
        sort_blocks((jnp.zeros((1, 4)),), ("data",), 6)


def test_no_array_grows_with_the_square_of_the_pairs():
    """For TPU, at B = 512: the largest arrays are a few times [2H, P]."""
    pairs = 512 * 511 // 2
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, pairs), (2,), (pairs,))]
    program = jax.jit(blocked).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    arrays = re.findall(r"tensor<((?:\d+x)+)[a-z]", program)
    assert max(math.prod(int(size) for size in shape.split("x") if size) for shape in arrays) < 10 * 4 * pairs
