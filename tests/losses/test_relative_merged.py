"""The merging form of the relative loss counts exactly as the tiled one, and its kernels as they sort elsewhere."""

from __future__ import annotations

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.losses import merge_kernel
from jasper_jax.losses.distributed_sort import sort_blocks
from jasper_jax.losses.relative import pair_order, relative_from_similarities
from jasper_jax.losses.relative_merged import merged
from jasper_jax.losses.relative_tiled import tiled

PAIRS = 500

_merged = jax.jit(partial(merged, kernel=False))
_tiled = jax.jit(tiled)


def check(student: np.ndarray, teacher: np.ndarray, margin: list[float]) -> None:
    arguments = student, np.float32(margin), teacher
    jax.tree.map(np.testing.assert_array_equal, _merged(*arguments), _tiled(*arguments))


def draw(seed: int, pairs: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0.6, 0.1, pairs).astype(np.float32)
    return teacher + rng.normal(0, 0.03, (2, pairs)).astype(np.float32), teacher


@pytest.mark.parametrize("pairs", [PAIRS, 128, 3])
@pytest.mark.parametrize("digits", [6, 2, 1])
def test_counts_as_the_tiled_form(pairs, digits):
    student, teacher = draw(0, pairs)
    check(np.round(student, digits), np.round(teacher, digits), [0.015, 0.1])


ASCENDING = np.linspace(-1, 1, PAIRS, dtype=np.float32)
SIDES = {
    "ascending": ASCENDING,
    "descending": ASCENDING[::-1].copy(),
    "one value": np.full(PAIRS, 0.25, np.float32),
    "two values": np.where(np.arange(PAIRS) % 3 == 0, np.float32(1), np.float32(-1)),
    "both zeros": np.where(np.arange(PAIRS) % 2 == 0, np.float32(0.0), np.float32(-0.0)),
    "ties across runs": np.round(ASCENDING * 2) / 2,
    "ties within runs": np.round(ASCENDING * 64) / 64,
    "a few outliers": np.where(np.arange(PAIRS) % 99 == 0, ASCENDING, np.float32(0.5)),
}


@pytest.mark.parametrize("margin", [[0.0, 1 / 64], [10.0, -0.5]])
@pytest.mark.parametrize("of_student", SIDES)
@pytest.mark.parametrize("of_teacher", SIDES)
def test_adversarial(of_teacher, of_student, margin):
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

    found, expected = (jax.jit(partial(loss, method))(student) for method in ("merged", "tiled"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nan_is_not_hidden():
    student, teacher = draw(2)
    student[0, 4] = np.nan
    value = jax.jit(lambda s, t: relative_from_similarities(s, pair_order(t), method="merged"))
    np.testing.assert_array_equal(np.isnan(value(student, teacher)), [True, False])
    assert np.isnan(value(student, np.where(np.arange(PAIRS) == 7, np.float32(np.nan), teacher))).all()


def test_takes_float32_alone():
    order = pair_order(jnp.zeros(6))
    with pytest.raises(ValueError, match="merged takes float32 similarities, got bfloat16"):
        relative_from_similarities(jnp.zeros((2, 6), jnp.bfloat16), order, method="merged")


def bitonic(shape: tuple[int, int], keys: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that rise and then fall, or the other way round; with one key no two are equal."""
    rng = np.random.default_rng(4)
    number = rng.permutation(math.prod(shape)).astype(np.int32).reshape(shape)
    key = rng.integers(-40, 40, shape).astype(np.float32) if keys == 2 else number.astype(np.float32)
    half = shape[1] // 2
    for row in range(shape[0]):
        for begin, step in ((0, 1), (half, -1)) if row % 3 else ((0, -1), (half, 1)):
            part = slice(begin, begin + half)
            order = np.lexsort((number[row, part], key[row, part]))[::step]
            key[row, part], number[row, part] = key[row, part][order], number[row, part][order]
    return key, number


@pytest.mark.parametrize(("shape", "keys"), [((3, 128), 1), ((16, 512), 2), ((2, 2048), 2)])
def test_the_merging_kernel_sorts_bitonic_rows(shape, keys):
    """Rising and falling; of equal first keys the second decides, and what moves with them moves with them."""
    rows, falling = bitonic(shape, keys), jnp.arange(shape[0]) % 2 == 1
    found = jax.jit(partial(merge_kernel.merge_in_kernel, keys=keys, interpret=True))(rows, falling)
    expected = jax.jit(partial(merge_kernel.merge, keys=keys, kernel=False))(rows, falling)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (np.diff(found[0], axis=1) * np.where(falling, -1, 1)[:, None] >= 0).all()


def test_rows_too_wide_for_the_kernel_are_halved_before(monkeypatch):
    monkeypatch.setattr(merge_kernel, "LARGEST", 1024)
    whole = merge_kernel.merge_in_kernel
    seen = []

    def interpreted(operands, falling, keys):
        seen.append(operands[0].shape)
        return whole(operands, falling, keys, interpret=True)

    monkeypatch.setattr(merge_kernel, "merge_in_kernel", interpreted)
    rows, falling = bitonic((2, 2048), 2), jnp.asarray([True, False])
    found = merge_kernel.merge(rows, falling, 2, kernel=True)
    jax.tree.map(np.testing.assert_array_equal, found, merge_kernel.merge(rows, falling, 2, kernel=False))
    assert seen == [(32, 128)]


@pytest.mark.parametrize(
    ("shape", "keys", "largest"), [((3, 256), 2, 1 << 19), ((8, 2048), 1, 1 << 19), ((8, 2048), 2, 1 << 13)]
)
def test_the_kernel_sorts_runs(shape, keys, largest, monkeypatch):
    monkeypatch.setattr(merge_kernel, "LARGEST", largest)
    key, number = (of[:, np.random.default_rng(5).permutation(shape[1])] for of in bitonic(shape, keys))
    found = merge_kernel.sort_runs((key, number), keys, kernel=True, interpret=True)
    jax.tree.map(np.testing.assert_array_equal, found, merge_kernel.sort_runs((key, number), keys, kernel=False))
    runs = np.diff(found[0].reshape(-1, 128), axis=1)
    assert (runs[::2] >= 0).all()
    assert (runs[1::2] <= 0).all()


def test_sort_refuses_what_is_no_power_of_2():
    for parts, size in ((6, 256), (4, 384), (4, 128)):
        with pytest.raises(ValueError, match=f"expected powers of 2.* got {parts} devices, blocks of {size}"):
            sort_blocks((jnp.zeros((1, size)),), ("data",), parts, kernel=False)


def test_no_array_grows_with_the_square_of_the_pairs():
    """For TPU, at B = 512: the largest is that of the comparisons within runs of 128, which is summed at once."""
    pairs = 512 * 511 // 2
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, pairs), (2,), (pairs,))]
    program = jax.jit(merged).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    arrays = re.findall(r"tensor<((?:\d+x)+)[a-z]", program)
    entries = 2 * 2 * (1 << pairs.bit_length())
    sizes = sorted({math.prod(int(size) for size in shape.split("x") if size) for shape in arrays})
    assert sizes[-1] == 128 * entries
    assert max(size for size in sizes if size < 128 * entries) <= entries


def test_memory_grows_as_the_pairs():
    memory = {}
    for pairs in (1 << 10, 1 << 14):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, pairs), (2,), (pairs,))]
        memory[pairs] = _merged.lower(*shapes).compile().memory_analysis().temp_size_in_bytes / pairs
    assert memory[1 << 14] < 1.2 * memory[1 << 10]
