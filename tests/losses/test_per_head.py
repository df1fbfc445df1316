"""The losses of several heads: their terms, targets, dimensions and sum, and the table of terms."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.losses import (
    HeadLoss,
    cosine_loss,
    distillation_losses,
    normalize,
    reduce_heads,
    relative_loss,
    similarity_loss,
)
from jasper_jax.losses.terms import TERMS, Term
from tests.losses.oracles import distil, draw, four_heads, oracle

# Several heads.


def expected_terms(student: np.ndarray, target: np.ndarray, wanted: HeadLoss) -> dict[str, float]:
    dims = wanted.nested or (student.shape[1],)
    each = [oracle(student[:, :m], target, wanted.settings["margin"]) for m in dims]
    terms = {name: np.mean([values[name] for values in each]) for name in ("similarity", "relative")}
    if wanted.weights["cosine"]:
        terms["cosine"] = oracle(student, target)["cosine"]
    terms = {name: value for name, value in terms.items() if wanted.weights[name]}
    return terms | {"total": sum(wanted.weights[name] * value for name, value in terms.items())}


def check_terms(terms, students, targets, spec) -> None:
    assert set(terms) == set(spec)
    for head in spec:
        expected = expected_terms(students[head], targets[head], spec[head])
        assert set(terms[head]) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(terms[head][name], value, rtol=1e-4, err_msg=f"{head} {name}")


def test_heads_with_one_target():
    students, teacher, spec = four_heads()
    targets = dict.fromkeys(students, teacher)
    terms = distil(students, targets, spec)
    check_terms(terms, students, targets, spec)
    totals = [float(found["total"]) for found in terms.values()]
    assert float(reduce_heads(terms, "sum")) == pytest.approx(sum(totals), rel=1e-6)
    assert float(reduce_heads(terms, "mean")) == pytest.approx(np.mean(totals), rel=1e-6)


def test_self_distillation():
    """Short heads learn from the long head, which gets no gradient from them."""
    students, teacher, spec = four_heads()
    targets = {head: teacher if head == "fc1" else students["fc1"] for head in students}
    check_terms(distil(students, targets, spec), students, targets, spec)

    def short_heads(students):
        targets = {head: teacher if head == "fc1" else students["fc1"] for head in students}
        terms = distillation_losses(students, targets, spec)
        return sum(terms[head]["total"] for head in ("fc2", "fc3", "fc4"))

    gradient = jax.jit(jax.grad(short_heads))({head: jnp.asarray(x) for head, x in students.items()})
    np.testing.assert_array_equal(gradient["fc1"], np.zeros_like(students["fc1"]))
    assert all(np.abs(gradient[head]).max() > 1e-4 for head in ("fc2", "fc3", "fc4"))


def test_gradients_of_heads_are_those_of_the_losses():
    students, teacher, spec = four_heads()

    def together(students):
        return reduce_heads(distillation_losses(students, dict.fromkeys(students, teacher), spec), "sum")

    def apart(students):
        fc1 = students["fc1"]
        total = 10 * cosine_loss(fc1, teacher)
        for m in (4, 8, 16):
            total += 200 / 3 * similarity_loss(fc1[:, :m], teacher) + 20 / 3 * relative_loss(fc1[:, :m], teacher)
        total += 200 * similarity_loss(students["fc2"], teacher) + 20 * relative_loss(students["fc2"], teacher, 0.2)
        return (
            total
            + 20 * relative_loss(students["fc3"][:, :2], teacher)
            + 200 * similarity_loss(students["fc4"], teacher)
        )

    ours, expected = (jax.jit(jax.value_and_grad(run))(students) for run in (together, apart))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected)


def test_a_head_without_losses():
    vectors = {"fc1": jnp.ones((3, 4))}
    terms = distillation_losses(vectors, vectors, {"fc1": HeadLoss(cosine=0, similarity=0, relative=0)})
    assert list(terms["fc1"]) == ["total"]
    assert float(terms["fc1"]["total"]) == 0


@pytest.mark.parametrize(("targets", "sorts"), [(1, 2), (2, 4)])
def test_pairs_are_ranked_once_for_each_target(targets, sorts):
    """One sort for the teacher's order and one for all students of it: four heads, six nested dimensions."""
    long, _ = draw(15, 48, 16)
    students = {f"fc{k}": long for k in range(4)}
    spec = {head: HeadLoss(nested=(4, 8, 16)) for head in students}

    def loss(students, *teachers):
        target = {head: teachers[k % targets] for k, head in enumerate(students)}
        return reduce_heads(distillation_losses(students, target, spec), "sum")

    text = jax.jit(jax.grad(loss)).lower(students, *[long + k for k in range(targets)]).as_text()
    assert len(re.findall(r"stablehlo\.sort", text)) <= sorts
    assert len(re.findall(r"call @_value_and_push", text)) == targets


def test_heads_that_do_not_fit():
    students, teacher, spec = four_heads()
    targets = dict.fromkeys(students, teacher)
    with pytest.raises(ValueError, match=r"targets \['fc1'\].*the heads differ"):
        distillation_losses(students, {"fc1": teacher}, spec)
    with pytest.raises(ValueError, match=r"head 'fc2'.*\(6, 8\).*\(6, 16\).*cosine"):
        distillation_losses(students, targets, spec | {"fc2": HeadLoss()})
    with pytest.raises(ValueError, match=r"head 'fc4'.*nested \(4, 5\).*\(6, 4\)"):
        distillation_losses(students, targets, spec | {"fc4": HeadLoss(cosine=0, nested=(4, 5))})
    with pytest.raises(ValueError, match=r"head 'fc3'.*\(5, 4\).*\(6, 16\)"):
        distillation_losses(students | {"fc3": students["fc3"][:5]}, targets, spec)
    with pytest.raises(ValueError, match="batch sizes differ"):
        distillation_losses(students | {"fc3": students["fc3"][:5]}, targets | {"fc3": teacher[:5]}, spec)
    with pytest.raises(ValueError, match="'max' is not one of sum, mean"):
        reduce_heads({"fc1": {"total": jnp.zeros(())}}, "max")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cosine": -1.0}, "cosine: .*-1.0"),
        ({"margin": float("nan")}, "margin: .*nan"),
        ({"relative": float("inf")}, "relative: .*inf"),
        ({"nested": (8, 0)}, r"nested: .*\(8, 0\)"),
        ({"nested": (8, 8)}, r"nested: .*\(8, 8\)"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        HeadLoss(**wrong)


def test_a_term_that_does_not_exist():
    with pytest.raises(TypeError, match="cosin: expected one of cosine, similarity, relative, sigmoid, contrastive"):
        HeadLoss(cosin=1.0)


def test_a_new_term_is_a_function_and_a_row(monkeypatch):
    """Weighted, named, taken at each nested dimension, differentiated."""

    def mean_square(comparison, heads):
        rows = comparison.rows(heads)
        return comparison.by_head(jnp.mean(jnp.square(comparison.similarities(rows)), axis=(1, 2)), rows)

    monkeypatch.setitem(TERMS, "mean_square", Term(mean_square, 0.0))
    student, teacher = draw(3, 6, 16)
    plain, wanted = (HeadLoss(nested=(8, 16), mean_square=weight) for weight in (0.0, 3.0))

    def losses(student, spec):
        return distillation_losses({"fc1": student}, {"fc1": teacher}, {"fc1": spec})["fc1"]

    before, after = losses(student, plain), losses(student, wanted)
    assert list(after) == ["cosine", "similarity", "relative", "mean_square", "total"]
    each = [np.mean(np.square(normalize(student[:, :m]) @ normalize(student[:, :m]).T)) for m in (8, 16)]
    np.testing.assert_allclose(after["mean_square"], np.mean(each), rtol=1e-5)
    np.testing.assert_allclose(after["total"], before["total"] + 3 * after["mean_square"], rtol=1e-6)
    slopes = [jax.grad(lambda x, s=s: losses(x, s)["total"])(jnp.asarray(student)) for s in (plain, wanted)]
    assert float(jnp.linalg.norm(slopes[0] - slopes[1])) > 1e-3
