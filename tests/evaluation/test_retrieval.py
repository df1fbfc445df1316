"""Ranking, metrics and intervals against the obvious way of computing them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.evaluation import retrieval
from jasper_jax.evaluation.retrieval import Interval, bootstrap, metrics_per_query, rank, score_retrieval
from jasper_jax.runtime.errors import UserError


def make(seed: int, queries: int = 30, passages: int = 60, dim: int = 8):
    """Random vectors; relevant passages are near their query more often than not."""
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(passages, dim)).astype(np.float32)
    answers = [rng.choice(passages, size=1 + k % 3, replace=False, shuffle=False).tolist() for k in range(queries)]
    questions = np.stack([documents[a].mean(axis=0) for a in answers]) + rng.normal(size=(queries, dim))
    test = RetrievalTest(
        passages={f"p{k:03d}": "" for k in range(passages)},
        queries={f"q{k:03d}": "" for k in range(queries)},
        relevant={f"q{k:03d}": {f"p{p:03d}": 1 for p in a} for k, a in enumerate(answers)},
    )
    return questions.astype(np.float32), documents, test


def oracle_order(queries, passages, ids):
    """Every passage of every query by falling cosine in float64, ties by id."""
    unit = [np.asarray(v, np.float64) for v in (queries, passages)]
    q, p = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in unit)
    return [sorted(ids, key=lambda name: (-round(float(row[ids.index(name)]), 12), name)) for row in q @ p.T]


def oracle_metrics(order: list[str], relevant: dict[str, int]) -> list[float]:
    gains = [1.0 if name in relevant else 0.0 for name in order[:10]]
    dcg = sum(gain / math.log2(place + 2) for place, gain in enumerate(gains))
    ideal = sum(1 / math.log2(place + 2) for place in range(min(10, len(relevant))))
    first = next((place for place, gain in enumerate(gains) if gain), None)
    return [
        dcg / ideal,
        gains[0] / len(relevant),
        sum(gains) / len(relevant),
        0.0 if first is None else 1 / (first + 1),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_obvious_computation(seed):
    queries, passages, test = make(seed)
    order = oracle_order(queries, passages, list(test.passages))
    expected = np.array([oracle_metrics(o, test.relevant[q]) for o, q in zip(order, test.queries)])
    assert 0.2 < expected.mean() < 0.95  # the case tells good from bad
    score = score_retrieval(queries, passages, test)
    means = [score.ndcg10, score.recall1, score.recall10, score.mrr10]
    np.testing.assert_allclose([m.value for m in means], expected.mean(axis=0), atol=1e-9)
    assert (score.queries, score.passages, score.missing) == (30, 60, 0)

    names = list(test.passages)
    ranked = {q: [names[p] for p in row] for q, row in zip(test.queries, rank(queries, passages, 10))}
    np.testing.assert_allclose(metrics_per_query(ranked, test.relevant), expected, atol=1e-9)


def test_by_hand():
    test = RetrievalTest({"a": "", "b": "", "c": ""}, {"x": "", "y": ""}, {"x": {"a": 1}, "y": {"a": 1, "c": 1}})
    passages = np.eye(3)
    queries = np.array([[0.5, 0.9, 0.1], [0.9, 0.5, 0.1]])  # x: b a c; y: a b c
    score = score_retrieval(queries, passages, test)
    x, y = 1 / math.log2(3), (1 + 0.5) / (1 + 1 / math.log2(3))
    assert score.ndcg10.value == pytest.approx((x + y) / 2)
    assert score.recall1.value == pytest.approx((0 + 0.5) / 2)
    assert score.recall10.value == 1.0
    assert score.mrr10.value == pytest.approx((0.5 + 1) / 2)


def test_length_of_vectors_does_not_matter():
    queries, passages, test = make(4)
    scale = np.random.default_rng(0).uniform(0.1, 30, size=(len(passages), 1))
    assert score_retrieval(queries * 7, passages * scale, test) == score_retrieval(queries, passages, test)


def test_order_of_passages_does_not_matter():
    queries, passages, test = make(5)
    passages[10:20] = passages[0]  # ties
    order = np.random.default_rng(1).permutation(len(passages))
    names = list(test.passages)
    shuffled = RetrievalTest({names[k]: "" for k in order}, test.queries, test.relevant)
    assert score_retrieval(queries, passages[order], shuffled) == score_retrieval(queries, passages, test)


def test_order_of_queries_moves_no_mean():
    queries, passages, test = make(6)
    order = np.random.default_rng(1).permutation(len(queries))
    names = list(test.queries)
    shuffled = RetrievalTest(test.passages, {names[k]: "" for k in order}, test.relevant)
    ours, theirs = (
        score_retrieval(queries, passages, test),
        score_retrieval(queries[order], passages, shuffled),
    )
    assert theirs.ndcg10.value == pytest.approx(ours.ndcg10.value)


@pytest.mark.parametrize("dim", [3, 37, 384])
def test_equal_passages_are_ranked_by_id_wherever_they_stand(dim):
    rng = np.random.default_rng(dim)
    passages = rng.normal(size=(200, dim)).astype(np.float32)
    query = rng.normal(size=(1, dim)).astype(np.float32)
    twins = [3, 17, 64, 65, 127, 130, 150, 151, 180, 198, 199, 77, 78, 79]
    passages[twins] = query * 2  # more of them than the depth
    ids = [f"p{k:03d}" for k in rng.permutation(200)]
    found = [ids[k] for k in rank(query, passages, 10, ids=ids)[0]]
    assert found == sorted(ids[k] for k in twins)[:10]
    assert rank(query, passages, 10)[0].tolist() == sorted(twins)[:10]


def test_vectors_that_are_all_the_same_rank_by_id():
    test = RetrievalTest({f"p{k:02d}": "" for k in range(40)}, {"q": ""}, {"q": {"p00": 1}})
    late = RetrievalTest({f"p{k:02d}": "" for k in range(39, -1, -1)}, {"q": ""}, {"q": {"p00": 1}})
    for case in (test, late):
        assert score_retrieval(np.ones((1, 5)), np.ones((40, 5)), case).recall1.value == 1.0
    zero = score_retrieval(np.zeros((1, 5)), np.zeros((40, 5)), test)
    assert zero.mrr10.value == 1.0


def test_blocks_do_not_matter(monkeypatch):
    queries, passages, _ = make(7, queries=50, passages=300)
    whole = rank(queries, passages, 10)
    monkeypatch.setattr(retrieval, "_BLOCK", 7 * 300)
    np.testing.assert_array_equal(rank(queries, passages, 10), whole)
    expected = oracle_order(queries, passages, list(range(300)))
    np.testing.assert_array_equal(whole, [row[:10] for row in expected])


def test_skip_self_leaves_out_the_query_alone():
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    vectors[7] = vectors[3]
    found = rank(vectors, vectors, 5, skip_self=True)
    assert all(i not in row for i, row in enumerate(found))
    assert (found[7, 0], found[3, 0]) == (3, 7)
    assert rank(vectors[:4], vectors[:4], 10, skip_self=True).shape == (4, 3)


def test_fewer_passages_than_the_depth():
    queries, passages, test = make(8, passages=4, queries=5)
    assert score_retrieval(queries, passages, test).recall10.value == 1.0


def test_relevant_passage_outside_the_corpus_is_counted_and_not_found():
    test = RetrievalTest({"a": "", "b": ""}, {"q": ""}, {"q": {"a": 1, "elsewhere": 1}})
    score = score_retrieval(np.array([[1.0, 0.0]]), np.eye(2), test)
    assert score.missing == 1
    assert score.recall10.value == 0.5


def test_a_judgement_is_the_gain():
    """As trec_eval, pytrec_eval, BEIR and MTEB: linear in the grade."""
    test = RetrievalTest({"a": "", "b": "", "c": ""}, {"q": ""}, {"q": {"a": 1, "b": 3}})
    score = score_retrieval(np.array([[0.9, 0.5, 0.1]]), np.eye(3), test)  # a b c
    dcg, ideal = 1 + 3 / math.log2(3), 3 + 1 / math.log2(3)
    assert score.ndcg10.value == pytest.approx(dcg / ideal)
    assert score.recall1.value == 0.5


@pytest.mark.parametrize("count", [4, 30])
def test_a_query_does_not_find_itself(count):
    """As ArguAna and Quora are scored: a passage with the query's id is left out, for that query alone."""
    passages = np.eye(count)
    ids = [f"{i:02d}" for i in range(count)]
    test = RetrievalTest(dict.fromkeys(ids, ""), {"00": "", "q": ""}, {"00": {"01": 1}, "q": {"00": 1}})
    queries = np.zeros((2, count))
    queries[:, :2] = [[0.9, 0.4], [0.9, 0.4]]
    score = score_retrieval(queries, passages, test)
    assert score.recall1.value == 1.0  # 00 finds 01, which is second to itself; q finds 00


def test_a_judgement_of_the_query_itself_counts():
    """A folder that numbers queries and passages alike, and whose ids mean nothing to each other."""
    test = RetrievalTest({"1": "", "2": ""}, {"1": "", "2": ""}, {"1": {"1": 1}, "2": {"2": 1}})
    assert score_retrieval(np.eye(2), np.eye(2), test).recall1.value == 1.0


def test_what_is_refused():
    test = RetrievalTest({"a": "", "b": ""}, {"q": ""}, {"q": {"a": 1}})
    with pytest.raises(UserError, match="query 'q' has no relevant passage"):
        score_retrieval(np.ones((1, 2)), np.eye(2), RetrievalTest(test.passages, test.queries, {}))
    with pytest.raises(UserError, match="no query"):
        score_retrieval(np.ones((0, 2)), np.eye(2), RetrievalTest(test.passages, {}, {}))
    with pytest.raises(ValueError, match="3 query vectors for 1 texts"):
        score_retrieval(np.ones((3, 2)), np.eye(2), test)
    with pytest.raises(ValueError, match="queries have 3 components, passages 2"):
        score_retrieval(np.ones((1, 3)), np.eye(2), test)
    with pytest.raises(UserError, match="vector 1 of 2 is not finite"):
        score_retrieval(np.ones((1, 2)), np.array([[1, 0], [0, np.nan]]), test)


def test_interval_repeats_and_contains_the_mean():
    queries, passages, test = make(9, queries=80)
    first = score_retrieval(queries, passages, test, seed=3)
    assert first == score_retrieval(queries, passages, test, seed=3)
    assert first.ndcg10 != score_retrieval(queries, passages, test, seed=4).ndcg10
    for metric in (first.ndcg10, first.recall1, first.recall10, first.mrr10):
        assert metric.low < metric.value < metric.high
        assert metric.low >= 0
        assert metric.high <= 1


def test_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).uniform(size=(400, 2))
    for column, interval in zip(values.T, bootstrap(values, resamples=4000)):
        error = 1.96 * column.std() / math.sqrt(len(column))
        assert interval.value == pytest.approx(column.mean())
        assert interval.half == pytest.approx(error, rel=0.08)
        assert interval.low == pytest.approx(column.mean() - error, abs=0.1 * error)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        (interval,) = bootstrap(rng.exponential(size=(60, 1)), seed=trial, resamples=300)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.87 < hits / 200 < 0.99


def test_columns_share_their_draws():
    values = np.random.default_rng(0).uniform(size=(50, 1))
    one, two = bootstrap(np.hstack([values, values + 1]))
    assert two.low == pytest.approx(one.low + 1)
    assert two.high == pytest.approx(one.high + 1)
    assert bootstrap(np.full((5, 1), 0.25)) == [Interval(0.25, 0.25, 0.25)]
