"""Linear probes: the regression, which texts train it, and its scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jasper_jax.data.labelled_texts import read_labels
from jasper_jax.evaluation.classification import (
    DRAWS,
    PER_LABEL,
    ClassificationTest,
    fit_probe,
    score_classification,
)
from jasper_jax.evaluation.similarity import unit
from jasper_jax.recipe.config_evaluation import Classification
from jasper_jax.runtime.errors import UserError

LABELS = {f"text {i}": f"label {i % 3}" for i in range(60)}


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_the_probe_is_scikit_learns(labels: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(labels)
    rows, label = unit(rng.normal(size=(40, 6))).astype(np.float64), np.arange(40) % labels
    kernel, bias = fit_probe(rows, label, labels)
    oracle = linear_model.LogisticRegression(tol=1e-10, max_iter=1000).fit(rows, label)
    new = rng.normal(size=(50, 6))
    scores = new @ kernel + bias
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(oracle.predict_proba(new), expected, atol=1e-5)


def test_the_probe_is_at_a_minimum() -> None:
    rng = np.random.default_rng(0)
    rows, label = rng.normal(size=(12, 3)), np.arange(12) % 3

    def loss(kernel, bias) -> float:
        scores = rows @ kernel + bias
        cross_entropy = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(12), label]
        return float(cross_entropy.sum() + (kernel**2).sum() / 2)

    kernel, bias = fit_probe(rows, label, 3)
    for _ in range(20):
        assert loss(kernel + 0.01 * rng.normal(size=kernel.shape), bias + 0.01 * rng.normal(size=3)) > loss(
            kernel, bias
        )


def test_each_draw_trains_on_other_texts_whatever_their_order() -> None:
    test = ClassificationTest(LABELS)
    assert test.trains.shape == (DRAWS, 60)
    for k in range(3):
        assert (test.trains[:, test.label == k].sum(axis=1) == PER_LABEL).all()
    chosen = [{text for text, trains in zip(test.texts, draw) if trains} for draw in test.trains]
    assert len(set(map(frozenset, chosen))) == DRAWS
    other = ClassificationTest(dict(reversed(LABELS.items())))
    assert chosen == [{text for text, trains in zip(other.texts, draw) if trains} for draw in other.trains]


def test_half_of_a_rare_labels_texts_are_left_to_test() -> None:
    test = ClassificationTest({**LABELS, "a": "rare", "b": "rare", "c": "rare"})
    rare = np.array([text in "abc" for text in test.texts])
    assert (test.trains[:, rare].sum(axis=1) == 1).all()


def test_scores() -> None:
    test = ClassificationTest(LABELS)
    told = score_classification(np.eye(3)[test.label] * 5, test)
    assert (told.accuracy, told.spread, told.f1, told.texts, told.labels) == (1.0, 0.0, 1.0, 60, 3)
    same = score_classification(np.ones((60, 2)), test)  # one label is predicted for all, of 12 each
    assert same.accuracy == pytest.approx(1 / 3)
    assert same.f1 == pytest.approx((2 * 12 / (36 + 12)) / 3)
    noise = score_classification(np.random.default_rng(0).normal(size=(60, 4)), test)
    assert 0.15 < noise.accuracy < 0.55
    assert noise.spread > 0
    with pytest.raises(ValueError, match="59 vectors for 60 texts"):
        score_classification(np.ones((59, 2)), test)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "has no texts; a classification test needs two labels"),
        (["a,x", "b,x"], "has one label, 'x'; a classification test needs two labels"),
        (["a,x", "b,y", "c,x"], r"3 texts of 2 labels, and one text of 'y'; a label needs at least two"),
        (["a,x", "b,y", "a,y"], r"line 4: the text has label 'y', and 'x' in another row"),
        (
            [f"{i},{i // 2}" for i in range(4002)],
            r"2,001 labels in the column 'label'; at most 2,000, is it the column",
        ),
        (["a,x", " ,y"], "line 3: column 'text' holds no text or several"),
        (["a,x", "b,"], "line 3: column 'label' holds no text or several"),
    ],
)
def test_labels_that_cannot_be_scored(rows: list[str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    with pytest.raises(UserError, match=problem):
        read_labels(Classification(name="mine", file=str(tmp_path / "labels.csv")), "key")


def test_labels_may_be_numbers_and_columns_have_other_names(tmp_path: Path) -> None:
    lines = ['{"t": "a", "k": 0}', '{"t": "b", "k": 1}', '{"t": "a", "k": 0}', '{"t": "c", "k": 1}']
    (tmp_path / "labels.jsonl").write_text("\n".join([*lines, '{"t": "d", "k": "0"}']))
    spec = Classification(name="mine", file=str(tmp_path / "labels.jsonl"), text="t", label="k")
    assert read_labels(spec, "key") == {"a": "0", "b": "1", "c": "1", "d": "0"}
    with pytest.raises(UserError, match="line 1: no column 'text'"):
        read_labels(spec.model_copy(update={"text": "text"}), "key")
