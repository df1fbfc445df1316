"""The queries that a student ranks better or worse than a teacher, one retrieval test at a time.

Letters: ``Q`` queries, ``N`` passages, ``E`` dimension, ``V`` providers of vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.evaluation.by_text import MOST_QUERIES, Comparison, Example, Provider, TestTexts, cut, pairs_of
from jasper_jax.evaluation.retrieval import RANKED, bootstrap, metrics_per_query, rank, ranked_passages

MOST_EXAMPLES = 480
"""Queries that are kept with their passages, of all tests and comparisons together."""
MOST_EACH = 12
"""Queries of one comparison that are kept because they were gained, and as many that were lost."""


def examples_each(tests: int, comparisons: int) -> int:
    """How many gained, and how many lost queries are kept of each comparison in each test."""
    return max(1, min(MOST_EACH, MOST_EXAMPLES // max(1, 2 * tests * comparisons)))


def compare_retrieval(
    test: RetrievalTest,
    providers: Sequence[Provider],
    vectors: Sequence[tuple[ArrayLike, ArrayLike]],
    each: int,
) -> TestTexts:
    """Compare every student with every teacher of ``providers`` on ``test``.

    Args:
      vectors: of each provider ``[Q, E]`` of the queries and ``[N, E]`` of the passages, in the test's order.
      each: how many gained and lost queries of a comparison are kept with their texts and passages.

    Raises:
      UserError: a query has no relevant passage.
    """
    ids, queries = list(test.passages), list(test.queries)
    ranked = [ranked_passages(rank(q, p, RANKED, ids=ids), test) for q, p in vectors]
    scores = np.array([metrics_per_query(found, test.relevant)[:, 0] for found in ranked])  # [V, Q]
    pairs = pairs_of(providers)
    most = {pair: _extremes(scores[pair[0]] - scores[pair[1]], each) for pair in pairs}
    shown = sorted({int(q) for sides in most.values() for side in sides for q in side})
    place = {q: i for i, q in enumerate(shown)}

    def mentioned(q: int) -> list[str]:
        return [*(p for found in ranked for p in found[queries[q]]), *_answers(test, queries[q])]

    passages = {p: i for i, p in enumerate(dict.fromkeys(p for q in shown for p in mentioned(q)))}
    kept = np.linspace(0, len(queries) - 1, min(len(queries), MOST_QUERIES)).astype(int)
    return TestTexts(
        queries=len(queries),
        query_sha256=hashlib.sha256("\0".join(test.queries.values()).encode("utf-8", "surrogatepass")).hexdigest(),
        ndcg10=[[round(float(score), 4) for score in row[kept]] for row in scores],
        passages=[cut(test.passages[p]) for p in passages],
        examples=[
            Example(
                query=cut(test.queries[queries[q]]),
                answers=[passages[p] for p in _answers(test, queries[q])],
                ndcg10=[round(float(score), 4) for score in scores[:, q]],
                first=[[passages[p] for p in found[queries[q]]] for found in ranked],
            )
            for q in shown
        ],
        comparisons=[
            Comparison(
                student=student,
                teacher=teacher,
                gained=int(np.count_nonzero(scores[student] > scores[teacher])),
                lost=int(np.count_nonzero(scores[student] < scores[teacher])),
                difference=bootstrap((scores[student] - scores[teacher])[:, None])[0],
                most_gained=[place[int(q)] for q in most[student, teacher][0]],
                most_lost=[place[int(q)] for q in most[student, teacher][1]],
            )
            for student, teacher in pairs
        ],
    )


def _extremes(difference: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the largest differences above 0, and of the smallest below; at most ``each`` of both. Equal ones
    keep their order."""
    order = np.argsort(-difference, kind="stable")
    back = np.argsort(difference, kind="stable")
    return order[difference[order] > 0][:each], back[difference[back] < 0][:each]


def _answers(test: RetrievalTest, query: str) -> list[str]:
    """The first ten relevant passages of the test's corpus, those of the highest gain first."""
    gains = {p: gain for p, gain in test.relevant[query].items() if gain > 0 and p in test.passages}
    return sorted(gains, key=lambda p: -gains[p])[:10]
