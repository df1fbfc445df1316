"""Queries gained and lost, agreement and disagreement text by text, against the obvious way of computing them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jasper_jax.evaluation import gained_lost
from jasper_jax.evaluation.by_text import LONGEST, ByText, cut, pairs_of, read, write
from jasper_jax.evaluation.disagreement import BINS, densities, principal_components, text_map
from jasper_jax.evaluation.gained_lost import MOST_EXAMPLES, compare_retrieval, examples_each
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.similarity import unit
from jasper_jax.evaluation.text_tests import Texts
from jasper_jax.runtime.errors import UserError
from tests.reporting.run_folders import HELD_OUT, PROVIDERS, QUERIES, retrieval, texts_found, vectors


def test_queries_are_gained_and_lost_as_their_scores_say() -> None:
    made, test = vectors(), retrieval()
    found = compare_retrieval(test, PROVIDERS, [(q, p) for q, p, _ in made], each=3)
    scores = np.array(found.ndcg10)
    assert scores.shape == (4, QUERIES)
    for row, (queries, passages, _) in zip(scores, made):
        assert row.mean() == pytest.approx(score_retrieval(queries, passages, test).ndcg10.value, abs=1e-4)
    assert [(c.student, c.teacher) for c in found.comparisons] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    for c in found.comparisons:
        difference = scores[c.student] - scores[c.teacher]
        assert (c.gained, c.lost) == (int((difference > 0).sum()), int((difference < 0).sum()))
        assert min(c.gained, c.lost) > 0  # the case has both
        assert c.difference.value == pytest.approx(difference.mean(), abs=1e-4)
        assert c.difference.low < c.difference.value < c.difference.high
        for chosen, sign in ((c.most_gained, 1), (c.most_lost, -1)):
            shown = [sign * (e.ndcg10[c.student] - e.ndcg10[c.teacher]) for e in (found.examples[k] for k in chosen)]
            assert shown == pytest.approx(sorted(sign * difference, reverse=True)[: len(shown)], abs=2e-4)
            assert len(shown) == min(3, c.gained if sign > 0 else c.lost)


def test_an_example_has_the_first_ten_passages_of_every_provider() -> None:
    made, test = vectors(), retrieval()
    found = compare_retrieval(test, PROVIDERS, [(q, p) for q, p, _ in made], each=2)
    questions = [cut(text) for text in test.queries.values()]
    for example in found.examples:
        number = questions.index(example.query)
        assert [found.passages[p] for p in example.answers] == [cut(test.passages[f"p{number}"])]
        for first, (queries, passages, _) in zip(example.first, made):
            order = np.argsort(-(unit(passages) @ unit(queries)[number]), kind="stable")[:10]
            assert [found.passages[p] for p in first] == [cut(test.passages[f"p{i}"]) for i in order]


def test_the_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examples_each(1, 2) == gained_lost.MOST_EACH
    for tests, comparisons in ((15, 6), (2, 100), (1000, 1000)):
        each = examples_each(tests, comparisons)
        assert each == 1 or 2 * each * tests * comparisons <= MOST_EXAMPLES
    monkeypatch.setattr(gained_lost, "MOST_QUERIES", 7)
    found = compare_retrieval(retrieval(), PROVIDERS, [(q, p) for q, p, _ in vectors()], each=1)
    assert {len(row) for row in found.ndcg10} == {7}
    assert found.queries == QUERIES
    assert [len(cut(text)) for text in ("a" * 10, "a" * LONGEST, "a" * 9 * LONGEST, "\x1b" * LONGEST)] == [
        10,
        *[LONGEST] * 3,
    ]
    assert cut("a\x1b[2J\u202eb") == "a\\x1b[2J\\u202eb"


def test_density_counts_every_pair_once() -> None:
    held_out = [h for *_, h in vectors()]
    found = densities(PROVIDERS, held_out)
    assert [(d.student, d.teacher) for d in found] == pairs_of(PROVIDERS)
    i, j = np.triu_indices(HELD_OUT, k=1)
    for density in found:
        counts = np.array(density.counts)
        assert counts.shape == (BINS, BINS)
        assert counts.sum() == len(i)
        student, teacher = (unit(held_out[k]) for k in (density.student, density.teacher))
        edges = np.linspace(density.low, density.high, BINS + 1)
        across = np.histogram((student @ student.T)[i, j].clip(edges[0], edges[-1]), edges)[0]
        np.testing.assert_allclose(counts.sum(axis=1), across, atol=1)  # a similarity may be on an edge
        assert np.corrcoef(counts.sum(axis=0), np.histogram((teacher @ teacher.T)[i, j], edges)[0])[0, 1] > 0.9


def test_disagreement_is_that_of_a_text_s_similarities_to_the_others() -> None:
    held_out = [h for *_, h in vectors()]
    texts = Texts([f"text {i}" for i in range(HELD_OUT)], ["passage"] * HELD_OUT)
    found = text_map(texts, PROVIDERS, held_out)
    similarities = [unit(h) @ unit(h).T for h in held_out]
    for n in (0, 17, 79):
        others = np.delete(np.arange(HELD_OUT), n)
        for s in (0, 1):
            for t in (0, 1):
                correlation = np.corrcoef(similarities[s][n, others], similarities[2 + t][n, others])[0, 1]
                assert found[n].disagreement[s][t] == pytest.approx(1 - correlation, abs=1e-4)
        for k in range(4):
            assert found[n].nearest[k] == others[np.argsort(-similarities[k][n, others], kind="stable")][:5].tolist()
    same = text_map(texts, PROVIDERS, [held_out[2]] * 4)
    assert max(x for text in same for row in text.disagreement for x in row) < 1e-4
    places = np.array([text.place for text in found])
    np.testing.assert_allclose(places, principal_components(unit(held_out[3]), 24), atol=1e-4)


def test_too_few_texts_make_no_map_and_equal_vectors_no_error() -> None:
    texts = Texts(["a", "b"], ["query"] * 2)
    assert text_map(texts, PROVIDERS, [np.ones((2, 3))] * 4) == []
    assert densities(PROVIDERS, [np.ones((1, 3))] * 4) == []
    (density, *_) = densities(PROVIDERS, [np.ones((5, 3))] * 4)
    assert np.array(density.counts).sum() == 10
    equal = text_map(Texts(["a"] * 4, ["query"] * 4), PROVIDERS, [np.ones((4, 3))] * 4)
    assert equal[0].disagreement == [[1.0, 1.0]] * 2


def test_the_file_is_what_was_written_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    assert read(path) is None
    found = texts_found()
    write(found, path)
    once = path.read_bytes()
    assert read(path) == found
    write(found, path)
    assert path.read_bytes() == once
    path.write_bytes(once.replace(b'"gained":', b'"gained":1', 1))
    with pytest.raises(UserError, match="damaged"):
        read(path)
    for content in (b"[]", b"{", b'{"format": 2}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="jasper evaluate"):
            read(path)
    write(ByText(), path)
    assert read(path) == ByText()
