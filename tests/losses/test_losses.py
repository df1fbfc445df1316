"""The three losses and their sum per head, against golden values, an oracle in numpy and finite differences."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.losses import (
    HeadLoss,
    cosine_loss,
    distillation_losses,
    normalize,
    reduce_heads,
    relative_loss,
    similarity_loss,
)
from tests.losses.oracles import distil, draw, four_heads, oracle, rows

GOLDEN = np.load(Path(__file__).parent / "golden" / "losses.npz")
CASES = sorted({name.split("/")[0] for name in GOLDEN.files})
FUNCTIONS = {"cosine": cosine_loss, "similarity": similarity_loss, "relative": relative_loss}
LOSSES = {name: jax.jit(loss) for name, loss in FUNCTIONS.items()}
GRADIENTS = {name: jax.jit(jax.value_and_grad(loss)) for name, loss in FUNCTIONS.items()}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# Golden values of the public PyTorch implementation.


def golden_terms(case: str, student: jax.Array, teacher: jax.Array) -> dict[str, jax.Array]:
    has_cosine = f"{case}/cosine" in GOLDEN
    head = HeadLoss(cosine=10 if has_cosine else 0, nested=tuple(GOLDEN[f"{case}/mrl_dims"].tolist()))
    return distillation_losses({"fc1": student}, {"fc1": teacher}, {"fc1": head})["fc1"]


def check_golden(case: str, dtype: type, tolerance: float) -> None:
    student, teacher = (jnp.asarray(GOLDEN[f"{case}/{name}"], dtype) for name in ("student", "teacher"))

    @jax.jit
    def run(student):
        terms, pull = jax.vjp(lambda s: golden_terms(case, s, teacher), student)
        zeros = jax.tree.map(jnp.zeros_like, terms)
        return terms, {name: pull(zeros | {name: jnp.ones_like(terms[name])})[0] for name in terms}

    terms, gradients = run(student)
    weights = {name: HeadLoss().weights[name] for name in terms if name != "total"}
    assert ("cosine" in terms) == (f"{case}/cosine" in GOLDEN)
    for name in weights:
        assert terms[name].dtype == dtype
        np.testing.assert_allclose(terms[name], GOLDEN[f"{case}/{name}"], rtol=tolerance)
        gradient, expected = gradients[name], GOLDEN[f"{case}/{name}_grad"]
        assert gradient.dtype == dtype
        assert np.linalg.norm(gradient - expected) <= tolerance * np.linalg.norm(expected), name
    total = sum(weight * GOLDEN[f"{case}/{name}"] for name, weight in weights.items())
    np.testing.assert_allclose(terms["total"], total, rtol=tolerance)


def test_golden_file_is_whole():
    assert len(CASES) == 5
    assert sum(f"{case}/cosine" in GOLDEN for case in CASES) == 4


@pytest.mark.parametrize("case", CASES)
def test_golden_in_float64(case, float64):
    check_golden(case, jnp.float64, 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_golden_in_float32(case):
    check_golden(case, jnp.float32, 1e-4)


@pytest.mark.parametrize("method", ["tiled", "partitioned"])
def test_golden_of_each_dimension(method, float64):
    case = "b32_d48"
    student, teacher = (jnp.asarray(GOLDEN[f"{case}/{name}"]) for name in ("student", "teacher"))
    for m in GOLDEN[f"{case}/mrl_dims"]:
        value = relative_loss(student[:, :m], teacher, method=method)
        np.testing.assert_allclose(value, GOLDEN[f"{case}/relative_{m}"], rtol=1e-9)
        value = similarity_loss(student[:, :m], teacher)
        np.testing.assert_allclose(value, GOLDEN[f"{case}/similarity_{m}"], rtol=1e-9)


# The formulas.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), batch=st.sampled_from([3, 6, 7]), whole=st.booleans())
def test_oracle(seed, batch, whole):
    """`whole`: teacher similarities that are small whole numbers over 4, with many ties."""
    student, teacher = draw(seed, batch, 8)
    if whole:
        teacher = np.zeros_like(teacher)
        for row, places in enumerate(np.random.default_rng(seed).permuted([range(8)] * batch, axis=1)):
            teacher[row, places[:4]] = 0.5
    expected = oracle(student, teacher)
    for name, loss in LOSSES.items():
        value = loss(jnp.asarray(student), jnp.asarray(teacher))
        np.testing.assert_allclose(value, expected[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_rows_of_the_batch_that_repeat():
    student, teacher = draw(1, 6, 16)
    student[3:], teacher[3:] = student[:3], np.eye(16, dtype=np.float32)[:3]
    teacher[:3] = teacher[3:]
    expected = oracle(student, teacher)
    for name, loss in LOSSES.items():
        np.testing.assert_allclose(loss(student, teacher), expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_batch_does_not_matter(name, float64):
    student, teacher = (x.astype(np.float64) for x in draw(2, 6, 8))
    shuffle = np.random.default_rng(2).permutation(6)
    value, gradient = GRADIENTS[name](student, teacher)
    shuffled_value, shuffled_gradient = GRADIENTS[name](student[shuffle], teacher[shuffle])
    np.testing.assert_allclose(shuffled_value, value, rtol=1e-12)
    np.testing.assert_allclose(shuffled_gradient, gradient[shuffle], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_lengths_do_not_matter(name, float64):
    student, teacher = (x.astype(np.float64) for x in draw(3, 6, 8))
    scaled = LOSSES[name](student * np.arange(1, 7)[:, None], teacher * 7)
    np.testing.assert_allclose(scaled, LOSSES[name](student, teacher), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name, float64):
    student, teacher = (x.astype(np.float64) for x in draw(4, 6, 8))
    loss, step = LOSSES[name], 1e-6
    _, gradient = GRADIENTS[name](student, teacher)
    assert np.abs(gradient).max() > 1e-4
    for index in np.ndindex(student.shape):
        bump = np.zeros_like(student)
        bump[index] = step
        slope = (loss(student + bump, teacher) - loss(student - bump, teacher)) / (2 * step)
        assert gradient[index] == pytest.approx(float(slope), abs=1e-7)


@pytest.mark.parametrize("name", ["cosine", "similarity"])
def test_a_perfect_student_has_no_loss(name):
    _, teacher = draw(5, 6, 8)
    assert float(LOSSES[name](teacher, teacher)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_too_few_texts(batch):
    student, teacher = draw(6, batch, 8)
    student[0] = 0  # so that a matrix of one entry would not be 1
    for name in ["relative", "similarity"][: 3 - batch]:
        value, gradient = GRADIENTS[name](student, teacher)
        assert float(value) == 0
        np.testing.assert_array_equal(gradient, np.zeros_like(student))
    terms = distil({"fc1": student}, {"fc1": teacher}, {"fc1": HeadLoss()})["fc1"]
    assert float(terms["relative"]) == 0
    assert np.isfinite(terms["total"])


@pytest.mark.parametrize("which", ["one row", "student", "both"])
@pytest.mark.parametrize("name", LOSSES)
def test_zero_vectors_have_finite_gradients(name, which):
    student, teacher = draw(7, 6, 8)
    student[0 if which == "one row" else slice(None)] = 0
    if which == "both":
        teacher[:] = 0
    value, gradient = GRADIENTS[name](student, teacher)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_nan_is_not_hidden(name):
    for side in range(2):
        vectors = draw(8, 6, 8)
        vectors[side][2, 3] = np.nan
        assert np.isnan(LOSSES[name](*vectors))


def test_normalize():
    x, _ = draw(9, 4, 8)
    np.testing.assert_allclose(normalize(x), rows(x), rtol=1e-6)
    np.testing.assert_array_equal(normalize(jnp.zeros((2, 8))), np.zeros((2, 8)))
    assert np.isfinite(jax.jacobian(normalize)(jnp.zeros(8))).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_short_floats_are_widened_first(name, dtype):
    student, teacher = (jnp.asarray(x, dtype) for x in draw(10, 6, 8))
    value, gradient = GRADIENTS[name](student, teacher)
    wide = LOSSES[name](student.astype(jnp.float32), teacher.astype(jnp.float32))
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(value, wide)


def test_shapes_that_do_not_fit():
    for loss in FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"student \(4, 8\), teacher \(5, 8\).*batch sizes"):
            loss(jnp.zeros((4, 8)), jnp.zeros((5, 8)))
        with pytest.raises(ValueError, match=r"student \(8,\), teacher \(4, 8\)"):
            loss(jnp.zeros(8), jnp.zeros((4, 8)))
        with pytest.raises(ValueError, match=r"\(0, 8\).*nothing to compare"):
            loss(jnp.zeros((0, 8)), jnp.zeros((0, 8)))
    with pytest.raises(ValueError, match=r"student \(4, 8\), teacher \(4, 9\).*cosine"):
        cosine_loss(jnp.zeros((4, 8)), jnp.zeros((4, 9)))


# The precision of products, which no value on a CPU shows.


def dots_below_highest(program: str) -> list[str]:
    dots = [line for line in program.splitlines() if "dot_general" in line]
    return [line for line in dots if "precision = [HIGHEST, HIGHEST]" not in line]


def test_every_dot_has_the_highest_precision():
    students, teacher, spec = four_heads()
    students = {head: jnp.asarray(x, jnp.bfloat16) for head, x in students.items()}

    def all_heads(students, teacher):
        return reduce_heads(distillation_losses(students, dict.fromkeys(students, teacher), spec), "sum")

    programs = [jax.jit(jax.value_and_grad(all_heads)).trace(students, teacher)]
    for loss in FUNCTIONS.values():
        programs.append(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(teacher, teacher))
    dots = 0
    for program in programs:
        for platform in ("cpu", "tpu", "cuda"):
            text = program.lower(lowering_platforms=(platform,)).as_text()
            assert dots_below_highest(text) == []
            dots += text.count("dot_general")
    assert dots > 30


def test_the_check_of_precision_sees_a_plain_dot():
    assert dots_below_highest(jax.jit(lambda x: x @ x.T).lower(jnp.ones((4, 8))).as_text())
