"""Retrieval: how well a provider's vectors rank the passages that answer a query.

The ranking is exact (cosine similarity, every passage). The metrics come from ir-measures, with 95% intervals from
resampling the queries. Letters: ``Q`` queries, ``N`` passages, ``E`` dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.evaluation.similarity import unit
from jasper_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from jasper_jax.assets.corpora import RetrievalTest

DEPTH = 10
"""Ranks that the metrics look at."""
RANKED = DEPTH + 1
"""Passages that are ranked: a query that is itself a passage is left out of its own result."""
METRICS = ("ndcg10", "recall1", "recall10", "mrr10")
_BLOCK = 2**24  # float32 similarities held at a time (64 MiB)
_SLACK = 1e-5  # more than the rounding error of a float32 dot product of unit vectors


@dataclass(frozen=True)
class Interval:
    """A mean over queries and the bounds of its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width, shown after ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class RetrievalScore:
    queries: int
    passages: int
    missing: int
    """Relevant passages that are not in the corpus; they count as not retrieved."""
    ndcg10: Interval
    recall1: Interval
    recall10: Interval
    mrr10: Interval


def score_retrieval(
    query_vectors: ArrayLike,
    passage_vectors: ArrayLike,
    test: RetrievalTest,
    seed: int = 0,
    resamples: int = 1000,
) -> RetrievalScore:
    """nDCG@10, Recall@1, Recall@10 and MRR@10 of vectors on a retrieval test.

    Vectors need not be normalised. Passages with equal similarity are ranked by id. The same ``seed`` resamples the
    same queries for every provider, so their intervals are comparable. A gain of nDCG is the judgement itself, as in
    trec_eval, BEIR and MTEB. As there, a passage with the query's own id is left out of its result; here only if it is
    not judged relevant, so that a folder which numbers queries and passages alike is scored.

    Args:
      query_vectors: ``[Q, E]`` in the order of ``test.queries``.
      passage_vectors: ``[N, E]`` in the order of ``test.passages``.
      test: the texts' ids and, for every query, the ids of the passages that answer it with their gains.
      resamples: the number of resamplings, of Q queries with replacement, for the intervals.
    """
    passage_ids = list(test.passages)
    for name, vectors, ids in (("query", query_vectors, test.queries), ("passage", passage_vectors, passage_ids)):
        if (count := len(np.asarray(vectors))) != len(ids):
            raise ValueError(f"{count} {name} vectors for {len(ids)} texts of the test")
    return score_ranking(rank(query_vectors, passage_vectors, RANKED, ids=passage_ids), test, seed, resamples)


def score_ranking(nearest: np.ndarray, test: RetrievalTest, seed: int = 0, resamples: int = 1000) -> RetrievalScore:
    """:func:`score_retrieval` of the positions ``nearest [Q, 11]`` of each query's passages, the nearest first."""
    ranked = ranked_passages(nearest, test)
    values = metrics_per_query(ranked, test.relevant)
    return RetrievalScore(
        queries=len(ranked),
        passages=len(test.passages),
        missing=sum(p not in test.passages for q in ranked for p in test.relevant[q]),
        **dict(zip(METRICS, bootstrap(values, seed, resamples), strict=True)),
    )


def ranked_passages(nearest: np.ndarray, test: RetrievalTest) -> dict[str, list[str]]:
    """The ids of the first ten passages of every query, without the query's own, from ``nearest [Q, 11]``.

    UserError: a query has no relevant passage, or there is no query.
    """
    query_ids, passage_ids = list(test.queries), list(test.passages)
    unanswered = [q for q in query_ids if not test.relevant.get(q)]
    if unanswered or not query_ids:
        problem = f"query {unanswered[0]!r} has no relevant passage" if unanswered else "it has no query"
        raise UserError(f"retrieval test cannot be scored: {problem}")

    own = {q for q in query_ids if q in test.passages and q not in test.relevant[q]}
    named = ([passage_ids[p] for p in row] for row in nearest)
    return {q: [p for p in row if p != q or q not in own][:DEPTH] for q, row in zip(query_ids, named, strict=True)}


def rank(
    queries: ArrayLike,
    passages: ArrayLike,
    depth: int,
    ids: Sequence[str] | None = None,
    skip_self: bool = False,
) -> np.ndarray:
    """Positions ``[Q, min(depth, N)]`` of the passages nearest to each query by cosine, nearest first.

    A float32 matrix product, a block of queries at a time, finds a query's few candidates. They are scored again in
    float64 row by row, so that equal vectors tie exactly and the result does not depend on blocks or threads. Ties go
    to the smaller id (without ``ids`` the smaller position).

    Args:
      queries: ``[Q, E]``; passages: ``[N, E]``.
      skip_self: query i is passage i and is excluded from its own result.
    """
    queries, passages = unit(queries), unit(passages)
    if queries.shape[1] != passages.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} components, passages {passages.shape[1]}")
    if skip_self and len(queries) != len(passages):
        raise ValueError(f"{len(queries)} queries are not the {len(passages)} passages")
    depth = min(depth, len(passages) - skip_self)
    if depth < 1:
        raise ValueError(f"no passage to rank: {len(passages)} passages, depth {depth}")
    precedence = np.arange(len(passages))
    if ids is not None:
        precedence[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))

    out = np.empty((len(queries), depth), np.int64)
    block = max(1, _BLOCK // len(passages))
    for start in range(0, len(queries), block):
        similarity = queries[start : start + block] @ passages.T
        for i, row in enumerate(similarity, start):
            if skip_self:
                row[i] = -np.inf
            enough = np.partition(row, len(row) - depth)[-depth] - _SLACK
            near = np.flatnonzero(row >= enough)
            exact = (passages[near].astype(np.float64) * queries[i]).sum(axis=1)
            out[i] = near[np.lexsort((precedence[near], -exact))[:depth]]
    return out


def metrics_per_query(ranked: dict[str, list[str]], relevant: Mapping[str, Mapping[str, int]]) -> np.ndarray:
    """``[Q, 4]``: each query's nDCG@10, Recall@1, Recall@10, MRR@10, in the order of ``ranked``."""
    from ir_measures import RR, R, evaluator, nDCG

    measures = [nDCG @ DEPTH, R @ 1, R @ DEPTH, RR @ DEPTH]
    qrels = {q: dict(relevant[q]) for q in ranked}
    # Decreasing scores without ties: each metric's implementation breaks ties in its own way.
    run = {q: {p: float(len(ids) - k) for k, p in enumerate(ids)} for q, ids in ranked.items()}
    row, column = {q: i for i, q in enumerate(ranked)}, {str(m): j for j, m in enumerate(measures)}
    values = np.full((len(ranked), len(measures)), np.nan)
    for result in evaluator(measures, qrels).iter_calc(run):
        values[row[result.query_id], column[str(result.measure)]] = result.value
    if np.isnan(values).any():
        raise RuntimeError("ir-measures returned no value for a query")
    return values


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = 1000) -> list[Interval]:
    """Mean of each column of ``[Q, K]`` with the 2.5% and 97.5% quantiles of its resampled means.

    All columns share the ``resamples`` draws of Q rows with replacement.
    """
    if resamples < 1:
        raise ValueError(f"expected resamples of at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    count, block = len(values), max(1, _BLOCK // (4 * values.size))
    means = [
        values[rng.integers(count, size=(min(block, resamples - done), count))].mean(axis=1)
        for done in range(0, resamples, block)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(values.mean(axis=0), low, high, strict=True)]
