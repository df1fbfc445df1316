"""The relative loss in its two exact forms, against the formula written out and against each other."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.losses.relative import (
    METHODS,
    TILED_COMPARISONS,
    TILED_UP_TO,
    pair_order,
    pairs,
    relative_from_similarities,
)
from jasper_jax.losses.relative_partitioned import argsort, partitioned
from jasper_jax.losses.relative_tiled import tiled

FORMS = ("tiled", "partitioned")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def formula(student: np.ndarray, teacher: np.ndarray, margin: float) -> tuple[float, np.ndarray]:
    """Value and gradient for one row `[P]`, pair of pairs by pair of pairs.

    The value is in float64. Whether a comparison is a violation is decided in the student's own precision, as
    s_q > s_p - margin, so that the counts behind the gradient can be compared exactly.
    """
    count = len(student)
    floor = student - student.dtype.type(margin)
    violates = (teacher[:, None] > teacher[None, :]) & (student[None, :] > floor[:, None])  # [p, q]
    wide = student.astype(np.float64)
    hinge = np.maximum(0, wide[None, :] - wide[:, None] + float(margin))
    comparisons = count * (count - 1) / 2
    value = hinge[teacher[:, None] > teacher[None, :]].sum() / comparisons
    return value, (violates.sum(0) - violates.sum(1)) / comparisons


@jax.jit
def _by_tiles(similarities, teacher, margin):
    return _value_and_gradient(similarities, teacher, margin, "tiled")


@jax.jit
def _by_parts(similarities, teacher, margin):
    return _value_and_gradient(similarities, teacher, margin, "partitioned")


def _value_and_gradient(similarities, teacher, margin, method):
    order = pair_order(teacher)
    value, pull = jax.vjp(lambda s: relative_from_similarities(s, order, margin, method), similarities)
    return value, pull(jnp.ones_like(value))[0]


def evaluate(student, teacher, margin, method):
    run = _by_tiles if method == "tiled" else _by_parts
    value, gradient = run(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(margin, student.dtype))
    return np.asarray(value), np.asarray(gradient)


def check(student: np.ndarray, teacher: np.ndarray, margin: float | list[float]) -> None:
    """Both forms on `[H, P]` agree with the formula, and count exactly alike."""
    margins = np.broadcast_to(np.float32(margin), len(student))
    gradients = []
    for method in FORMS:
        values, gradient = evaluate(student, teacher, margins, method)
        for row in range(len(student)):
            value, expected = formula(student[row], teacher, margins[row])
            np.testing.assert_allclose(values[row], value, rtol=1e-5, atol=2e-7, err_msg=method)
            np.testing.assert_allclose(gradient[row], expected, rtol=1e-6, atol=1e-9, err_msg=method)
        gradients.append(gradient)
    np.testing.assert_array_equal(*gradients)


def draw(seed: int, heads: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(0.6, 0.1, count).astype(np.float32)
    student = teacher + rng.normal(0, 0.03, (heads, count)).astype(np.float32)
    return student, teacher


@pytest.mark.parametrize("count", [2, 3, 31, 32, 33, 496])
def test_random(count):
    student, teacher = draw(count, 3, count)
    check(student, teacher, 0.015)


def test_margin_per_row():
    student, teacher = draw(0, 3, 33)
    check(student, teacher, [0.0, 0.015, 0.3])


ASCENDING = np.linspace(-1, 1, 33, dtype=np.float32)
TEACHERS = {
    "ascending": ASCENDING,
    "descending": ASCENDING[::-1].copy(),
    "one value": np.full(33, 0.25, np.float32),
    "two values": np.where(np.arange(33) % 3 == 0, np.float32(1), np.float32(-1)),
    "both zeros": np.where(np.arange(33) % 2 == 0, np.float32(0.0), np.float32(-0.0)),
    "runs": np.repeat(np.arange(11, dtype=np.float32), 3),
}


@pytest.mark.parametrize("margin", [0.0, 1 / 16, 0.015, 10.0])
@pytest.mark.parametrize("name", TEACHERS)
def test_adversarial(name, margin):
    """Steps of 1/16 between students: the margin 1/16 is met exactly, with ties on either side."""
    students = np.stack([ASCENDING, ASCENDING[::-1], np.repeat(ASCENDING[::3], 3)])
    check(students, TEACHERS[name], margin)
    check(np.stack([np.roll(ASCENDING, 7), np.zeros(33, np.float32), -ASCENDING]), TEACHERS[name], margin)


def test_student_of_signed_zeros():
    student = np.where(np.arange(33) % 2 == 0, np.float32(0.0), np.float32(-0.0))
    check(np.stack([student] * 3), ASCENDING, [0.0, 0.015, 0.5])


coarse = st.integers(-6, 6).map(lambda k: k / 16)
fine = st.floats(-1, 1, width=32, allow_subnormal=False)  # XLA takes subnormal numbers for 0
number = st.one_of(coarse, fine)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_similarities(data):
    count = data.draw(st.sampled_from([2, 3, 31]))
    numbers = data.draw(st.sampled_from([coarse, fine, number]))
    student = data.draw(st.lists(numbers, min_size=3 * count, max_size=3 * count))
    teacher = data.draw(st.lists(numbers, min_size=count, max_size=count))
    margin = data.draw(st.sampled_from([0.0, 1 / 16, 0.015, 0.5, 3.0]))
    check(np.asarray(student, np.float32).reshape(3, count), np.asarray(teacher, np.float32), margin)


@pytest.mark.parametrize("method", FORMS)
def test_float64(method, float64):
    student, teacher = (x.astype(np.float64) for x in draw(3, 2, 120))
    values, gradients = evaluate(student, teacher, np.full(2, 0.015), method)
    for row in range(2):
        value, gradient = formula(student[row], teacher, 0.015)
        np.testing.assert_allclose(values[row], value, rtol=1e-13)
        np.testing.assert_allclose(gradients[row], gradient, rtol=1e-13)


@pytest.mark.parametrize("method", FORMS)
def test_float32_keeps_six_digits(method):
    """At B = 128, for a good student far from 0 and for a bad one."""
    rng = np.random.default_rng(5)
    good, teacher = draw(5, 1, 8128)
    bad = rng.normal(0, 0.2, (1, 8128)).astype(np.float32)
    student = np.concatenate([good, bad])
    values, _ = evaluate(student, teacher, np.full(2, 0.015, np.float32), method)
    for row in range(2):
        expected = sum(
            np.maximum(0, below - above + np.float64(np.float32(0.015))).sum()
            for above, below in _above_and_below(student[row].astype(np.float64), teacher)
        )
        assert values[row] == pytest.approx(expected / (8128 * 8127 / 2), rel=2e-6)


def _above_and_below(student, teacher):
    ranked = student[np.argsort(teacher, kind="stable")]
    assert len(np.unique(teacher)) > 0.9 * len(teacher)
    bounds = np.searchsorted(np.sort(teacher), np.sort(teacher))  # ties do not count
    return ((ranked[p], ranked[: bounds[p]]) for p in range(len(ranked)))


def test_float32_keeps_six_digits_at_batch_512():
    student, teacher = draw(6, 1, 512 * 511 // 2)
    small, _ = evaluate(student, teacher, np.full(1, 0.015, np.float32), "partitioned")
    with jax.enable_x64(True):
        margin = np.full(1, np.float32(0.015), np.float64)
        large, _ = evaluate(student.astype(np.float64), teacher, margin, "partitioned")
    assert small[0] == pytest.approx(large[0], rel=2e-6)


@pytest.mark.parametrize("method", FORMS)
def test_gradients_cancel_exactly(method):
    student, teacher = draw(7, 2, 2016)
    _, gradient = evaluate(student, np.round(teacher, 2), np.full(2, 0.015, np.float32), method)
    pushes = gradient.astype(np.float64) * (2016 * 2015 / 2)
    np.testing.assert_allclose(pushes, np.round(pushes), atol=1e-3)
    assert (np.round(pushes).sum(axis=1) == 0).all()
    assert np.abs(pushes).max() > 10


@pytest.mark.parametrize("method", FORMS)
def test_finite_differences(method, float64):
    rng = np.random.default_rng(8)
    student, teacher = rng.normal(size=(2, 15)), np.round(rng.normal(size=15))
    order, step = pair_order(jnp.asarray(teacher)), 1e-6

    def loss(student, margin):
        return relative_from_similarities(jnp.asarray(student), order, jnp.asarray(margin), method)

    @jax.jit
    def total(student, margin):
        return (loss(student, margin) * jnp.asarray([1.0, -3.0])).sum()

    margin = np.asarray([0.3, 0.6])
    of_student, of_margin = jax.grad(total, argnums=(0, 1))(student, margin)
    for row, pair in np.ndindex(student.shape):
        bump = np.zeros_like(student)
        bump[row, pair] = step
        slope = (total(student + bump, margin) - total(student - bump, margin)) / (2 * step)
        assert of_student[row, pair] == pytest.approx(float(slope), abs=1e-8)
    for row in range(2):
        bump = step * np.eye(2)[row]
        slope = (total(student, margin + bump) - total(student, margin - bump)) / (2 * step)
        assert of_margin[row] == pytest.approx(float(slope), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs(count, method):
    order = pair_order(jnp.ones(count))
    value, pull = jax.vjp(lambda s: relative_from_similarities(s, order, method=method), jnp.ones((2, count)))
    np.testing.assert_array_equal(value, np.zeros(2))
    np.testing.assert_array_equal(pull(jnp.ones(2))[0], np.zeros((2, count)))


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_nan_is_not_hidden(side, method):
    student, teacher = draw(9, 3, 33)
    (student[0] if side == "student" else teacher)[4] = np.nan
    values, _ = evaluate(student, teacher, np.full(3, 0.015, np.float32), method)
    assert np.isnan(values[0])
    assert np.isnan(values[1]) == (side == "teacher")


def test_heads_one_after_the_other(monkeypatch):
    """More heads than one pass may hold: the same counts."""
    student, teacher = draw(10, 3, 45)
    order = pair_order(jnp.asarray(np.round(teacher, 1)))
    places = (order.order, order.place, order.first, order.last)
    margin = jnp.asarray([0.0, 0.015, 0.3])
    together = jax.jit(lambda s: partitioned(s, margin, *places))(student)
    monkeypatch.setattr("jasper_jax.losses.relative_partitioned.MAX_BATCHED", 64)
    apart = jax.jit(lambda s: partitioned(s, margin, *places))(student)
    jax.tree.map(np.testing.assert_array_equal, together, apart)


@pytest.mark.parametrize("columns", [1, 7, 45, 100, None])
def test_tile_width_does_not_matter(columns):
    student, teacher = draw(11, 2, 45)
    arguments = student, jnp.asarray([0.015, 0.1]), np.round(teacher, 1)
    expected, other = (jax.jit(lambda *a, width=width: tiled(*a, columns=width))(*arguments) for width in (16, columns))
    jax.tree.map(np.testing.assert_array_equal, other, expected)


@pytest.mark.parametrize("method", FORMS)
def test_vmap(method):
    student, teacher = draw(12, 4, 15)
    order = pair_order(jnp.asarray(teacher))

    def loss(student):
        return relative_from_similarities(student[None], order, method=method)[0]

    together = jax.jit(lambda s: relative_from_similarities(s, order, method=method))(student)
    np.testing.assert_array_equal(jax.jit(jax.vmap(loss))(student), together)
    apart = jax.jit(jax.vmap(jax.grad(loss)))(student)
    whole = jax.jit(jax.grad(lambda s: relative_from_similarities(s, order, method=method).sum()))(student)
    np.testing.assert_array_equal(apart, whole)


@pytest.mark.parametrize("packed", [True, False])
def test_argsort_is_stable(packed):
    keys = np.asarray([[0.5, -2.0, 0.5, np.inf, -0.25, -2.0, 3e-39, -np.inf, 0.5]], np.float32)
    np.testing.assert_array_equal(argsort(jnp.asarray(keys), packed=packed), np.argsort(keys, axis=-1, kind="stable"))


def test_order_bounds_the_ties():
    order = pair_order(jnp.asarray([3.0, 1.0, 3.0, 2.0, 3.0, 1.0]))
    np.testing.assert_array_equal(order.order, [1, 5, 3, 0, 2, 4])
    np.testing.assert_array_equal(order.place, [3, 0, 4, 2, 5, 1])
    np.testing.assert_array_equal(order.first, [0, 0, 2, 3, 3, 3])
    np.testing.assert_array_equal(order.last, [2, 2, 3, 6, 6, 6])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7, 8])
def test_pairs_takes_each_pair_once(size):
    """Whatever the order, the same for every matrix and for a stack of them."""
    names = np.minimum.outer(range(size), range(size)) * 100 + np.maximum.outer(range(size), range(size))
    stack = np.stack([names, 2 * names])
    taken = np.asarray(jax.jit(pairs)(stack))
    expected = [i * 100 + j for i in range(size) for j in range(i + 1, size)]
    assert sorted(taken[0].tolist()) == expected
    np.testing.assert_array_equal(taken[1], 2 * taken[0])
    np.testing.assert_array_equal(jax.jit(pairs)(names), taken[0])


def test_errors():
    order = pair_order(jnp.zeros(6))
    with pytest.raises(ValueError, match=r"\(2, 5\) and an order of \(6,\)"):
        relative_from_similarities(jnp.zeros((2, 5)), order)
    with pytest.raises(ValueError, match=r"\(6,\)"):
        relative_from_similarities(jnp.zeros(6), order)
    with pytest.raises(ValueError, match=r"margin.*\(3,\).*\(2, 6\)"):
        relative_from_similarities(jnp.zeros((2, 6)), order, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"'sorted' is not one of auto, tiled, merged, partitioned"):
        relative_from_similarities(jnp.zeros((2, 6)), order, method="sorted")
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        pairs(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        pair_order(jnp.zeros((2, 3)))


# What the compiler sees.


def lower(batch: int, heads: int, method: str, platform: str = "cpu"):
    count = batch * (batch - 1) // 2

    def loss(similarities, order):
        return relative_from_similarities(similarities, order, method=method).sum()

    order = jax.eval_shape(pair_order, jax.ShapeDtypeStruct((count,), jnp.float32))
    similarities = jax.ShapeDtypeStruct((heads, count), jnp.float32)
    return jax.jit(jax.value_and_grad(loss)).trace(similarities, order).lower(lowering_platforms=(platform,))


def largest_array(program: str) -> int:
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", program)
    return max(math.prod(int(size) for size in shape.split("x") if size) for shape in shapes)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_no_array_grows_with_the_square_of_the_pairs(platform):
    count = 512 * 511 // 2
    assert largest_array(lower(512, 2, "partitioned", platform).as_text()) <= 2 * 2 * (1 << count.bit_length())
    bound = 16 * 2 * count if platform == "cpu" else (1 << 25) + 2 * count
    assert largest_array(lower(512, 2, "tiled", platform).as_text()) <= bound


def test_partitioned_grows_as_pairs_times_their_logarithm():
    """Memory in proportion to the pairs; the arithmetic too, the loop's body being counted once."""
    cost, memory = {}, {}
    for batch in (64, 512):
        compiled = lower(batch, 1, "partitioned").compile()
        cost[batch] = compiled.cost_analysis()["flops"]
        memory[batch] = compiled.memory_analysis().temp_size_in_bytes
    padded = (1 << (512 * 511 // 2).bit_length()) / (1 << (64 * 63 // 2).bit_length())
    assert memory[512] <= 1.2 * padded * memory[64]
    assert memory[512] < 100 * 512 * 511 // 2
    assert 1 < cost[512] <= 1.2 * padded * cost[64] * math.log2(512 * 511 / 2) / math.log2(64 * 63 / 2)


def test_one_program_whatever_the_number_of_levels():
    """The levels are a loop: a larger batch does not make a longer program."""
    sizes = [len(lower(batch, 1, "partitioned").as_text().splitlines()) for batch in (16, 512)]
    assert sizes[0] == sizes[1]


def test_auto_chooses_by_the_platform_it_is_lowered_for():
    def form(batch, platform):  # of the tiled and the partitioned form only the second sorts
        program = lower(batch, 1, "auto", platform).as_text()
        if "tpu_custom_call" in program:
            return "merged"
        return "partitioned" if "stablehlo.sort" in program else "tiled"

    assert form(45, "cpu") == "tiled"
    assert form(47, "cpu") == "partitioned"
    assert form(128, "cpu") == "partitioned"
    assert form(128, "tpu") == form(128, "cuda") == "tiled"
    assert (form(129, "tpu"), form(1024, "tpu"), form(1024, "cuda")) == ("merged", "merged", "partitioned")
    assert 128 * 127 // 2 <= TILED_COMPARISONS**0.5 < 129 * 128 // 2
    assert 45 * 44 // 2 <= TILED_UP_TO["cpu"] < 47 * 46 // 2
