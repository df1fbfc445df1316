"""Agreement of student and teacher against the obvious computation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from jasper_jax.evaluation import agreement
from jasper_jax.evaluation.agreement import score_agreement, text_pairs


def cosines(vectors):
    rows = np.asarray(vectors, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def make(count: int = 60, noise: float = 0.7, seed: int = 0):
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(count, 12))
    return teacher @ rng.normal(size=(12, 7)) + noise * rng.normal(size=(count, 7)), teacher


def test_equals_the_obvious_computation():
    student, teacher = make()
    score = score_agreement(student, teacher, neighbours=10)
    upper = np.triu_indices(60, 1)
    a, b = cosines(student), cosines(teacher)
    assert score.spearman == pytest.approx(spearmanr(a[upper], b[upper]).statistic, abs=1e-6)
    shared = []
    for i in range(60):
        near = [set([j for j in np.argsort(-c[i]) if j != i][:10]) for c in (a, b)]
        shared.append(len(near[0] & near[1]) / 10)
    assert score.overlap == pytest.approx(np.mean(shared))
    assert 0.2 < score.overlap < 0.9
    assert (score.texts, score.pairs, score.neighbours) == (60, 1770, 10)


def test_a_rotation_agrees_wholly_and_noise_does_not():
    _, teacher = make(200)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    same = score_agreement(teacher @ rotation * 3, teacher)
    assert same.spearman == pytest.approx(1.0, abs=1e-6)
    assert same.overlap == 1.0
    noise = score_agreement(np.random.default_rng(2).normal(size=(200, 9)), teacher)
    assert abs(noise.spearman) < 0.05
    assert noise.overlap == pytest.approx(10 / 199, abs=0.02)


def test_order_of_texts_does_not_matter():
    student, teacher = make()
    order = np.random.default_rng(3).permutation(60)
    ours, shuffled = score_agreement(student, teacher), score_agreement(student[order], teacher[order])
    assert shuffled.overlap == ours.overlap
    assert shuffled.spearman == pytest.approx(ours.spearman)


def test_a_sample_of_pairs_is_near_all_of_them_and_repeats(monkeypatch):
    student, teacher = make(300)
    whole = score_agreement(student, teacher)
    monkeypatch.setattr(agreement, "MOST_PAIRS", 9000)
    sample = score_agreement(student, teacher, seed=1)
    assert (whole.pairs, sample.pairs) == (44850, 9000)
    assert sample.spearman == pytest.approx(whole.spearman, abs=0.02)
    assert sample.spearman != whole.spearman
    assert sample == score_agreement(student, teacher, seed=1)
    assert sample != score_agreement(student, teacher, seed=2)


@pytest.mark.parametrize("count", [3, 50, 100_000])
def test_drawn_pairs_are_different_and_in_order(count):
    most = min(count * (count - 1) // 2 - 1, 5000)
    i, j = text_pairs(count, most)
    assert len(set(zip(i.tolist(), j.tolist()))) == most
    assert (i < j).all()
    assert i.min() >= 0
    assert j.max() < count


def test_numbers_of_pairs_are_turned_into_pairs_without_error(monkeypatch):
    """The first and last numbers of some columns of the triangle, where the square root is least certain."""
    count = 30_000_000
    columns = np.array([1, 2, 3, 1000, 1_414_213, count - 2, count - 1], np.int64)
    first = columns * (columns - 1) // 2
    numbers = np.sort(np.concatenate([first, first + columns - 1]))

    class Draw:
        def choice(self, total, size, replace):
            return numbers

    monkeypatch.setattr(agreement.np.random, "default_rng", lambda seed: Draw())
    i, j = text_pairs(count, len(numbers))
    np.testing.assert_array_equal(j * (j - 1) // 2 + i, numbers)
    assert ((i >= 0) & (i < j)).all()


def test_all_pairs_where_they_are_few():
    i, j = text_pairs(4, 6)
    assert list(zip(i.tolist(), j.tolist())) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_what_has_no_answer_is_none():
    student, teacher = make(11)
    assert score_agreement(student, teacher).overlap is None  # everybody is a neighbour
    assert score_agreement(student, teacher, neighbours=9).overlap is not None
    collapsed = score_agreement(np.ones((20, 3)), make(20)[1])
    assert collapsed.spearman is None
    assert collapsed.overlap is not None
    alone = score_agreement(np.ones((1, 3)), np.ones((1, 4)))
    assert (alone.spearman, alone.overlap, alone.pairs) == (None, None, 0)


def test_what_is_refused():
    with pytest.raises(ValueError, match="3 student vectors and 4 teacher vectors"):
        score_agreement(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="neighbours"):
        score_agreement(np.eye(3), np.eye(3), neighbours=0)
