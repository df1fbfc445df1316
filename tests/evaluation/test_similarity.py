"""Human similarity, truncation and normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.evaluation.similarity import score_similarity, spearman, truncate, unit
from jasper_jax.runtime.errors import UserError


def oracle_spearman(x, y) -> float:
    """Pearson correlation of the mean ranks, counted one by one."""

    def ranks(values):
        return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]

    return float(np.corrcoef(ranks(list(x)), ranks(list(y)))[0, 1])


def test_score_is_spearman_over_the_upper_triangle():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 4))
    human = np.round(rng.uniform(size=(9, 9)), 1)  # with ties, and a lower triangle that is nonsense
    x, y = [], []
    for i in range(9):
        for j in range(i + 1, 9):
            norms = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
            x.append(round(vectors[i] @ vectors[j] / norms, 6))
            y.append(human[i, j])
    score = score_similarity(vectors, human)
    assert score.pairs == 36
    assert score.spearman == pytest.approx(oracle_spearman(x, y), abs=1e-9)


def test_perfect_and_reversed_judgements():
    vectors = np.random.default_rng(1).normal(size=(12, 5))
    cosine = unit(vectors) @ unit(vectors).T
    assert score_similarity(vectors, cosine**3).spearman == pytest.approx(1.0)
    assert score_similarity(vectors, -cosine).spearman == pytest.approx(-1.0)


def test_order_of_texts_does_not_matter():
    rng = np.random.default_rng(2)
    vectors, human = rng.normal(size=(15, 6)), rng.uniform(size=(15, 15))
    human = human + human.T
    order = rng.permutation(15)
    shuffled = score_similarity(vectors[order], human[np.ix_(order, order)])
    assert shuffled.spearman == pytest.approx(score_similarity(vectors, human).spearman)


def test_no_order_has_no_correlation():
    assert score_similarity(np.ones((4, 3)), np.random.default_rng(0).uniform(size=(4, 4))).spearman is None
    assert score_similarity(np.eye(1), np.eye(1)).spearman is None
    assert spearman(np.array([1.0]), np.array([1.0])) is None


def test_judgements_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"3 vectors need judgements of shape \(3, 3\), not \(4, 4\)"):
        score_similarity(np.eye(3), np.eye(4))


def test_truncate_takes_the_first_components_and_normalises():
    vectors = np.array([[3.0, 4.0, 12.0], [1.0, 0.0, 5.0]])
    np.testing.assert_allclose(truncate(vectors, 2), [[0.6, 0.8], [1.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(truncate(vectors, 3), unit(vectors))
    for dim in (0, 4):
        with pytest.raises(ValueError, match=f"first {dim} components of vectors with 3"):
            truncate(vectors, dim)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_unit(dtype):
    vectors = np.random.default_rng(0).integers(-9, 9, size=(9000, 17)).astype(dtype)
    vectors[5] = 0
    vectors[8999] = vectors[0]
    rows = unit(vectors)
    assert rows.dtype == np.float32
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths[5] == 0
    np.testing.assert_allclose(np.delete(lengths, 5), 1, rtol=1e-6)
    np.testing.assert_array_equal(rows[8999], rows[0])


def test_unit_refuses_what_cannot_be_scored():
    vectors = np.ones((5000, 2), np.float32)
    vectors[4500, 1] = np.inf
    with pytest.raises(UserError, match="vector 4500 of 5000 is not finite"):
        unit(vectors)
    for shape in ((3,), (3, 0), (2, 2, 2)):
        with pytest.raises(ValueError, match="shape"):
            unit(np.ones(shape))
