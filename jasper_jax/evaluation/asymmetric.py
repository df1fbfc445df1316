"""A student as query encoder for an index that a teacher made: its queries among the teacher's documents.

Such an index keeps the teacher's vectors; only queries are embedded anew, by the smaller model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, ndcg10, retrieval_tests
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.student.spaces import Space

QUERIES = "/queries"
"""Lists of queries end with this; the student embeds these, the teacher all others."""


def asymmetric_rows(
    vectors: Mapping[str, np.ndarray],
    spaces: Sequence[Space],
    documents: Mapping[tuple[str, ...], tuple[str, Mapping[str, np.ndarray]]],
    tests: TextTests,
    **fields: Any,
) -> Iterator[EvaluationRow]:
    """A row for each of ``spaces`` in which there are documents; none without a test of retrieval.

    Args:
      vectors: the student's, by list, of the head that all ``spaces`` have ``[n, E]``.
      documents: names of teachers -> the provider's name in tables, and its vectors by list ``[n, T]``.
      fields: of every row, besides provider, role, dim, documents and scores.
    """
    for space in spaces if tests.retrieval or tests.pairs else ():
        if space.teachers not in documents:
            continue
        provider, theirs = documents[space.teachers]
        mixed = {**theirs, **{name: space.of(x) for name, x in vectors.items() if name.endswith(QUERIES)}}
        yield EvaluationRow(
            provider=f"queries, documents: {provider}",
            role="asymmetric",
            dim=space.dim,
            documents=provider,
            **fields,
            **tests.score_retrieval(mixed),
        )


def share_kept(evaluation: Evaluation) -> list[str]:
    """A line for each test and asymmetric row: how much of the teacher's own nDCG@10 the student's queries keep."""
    rows = {row.provider: row for row in evaluation.rows}
    lines = []
    for row in evaluation.rows:
        own = rows.get(row.documents or "")
        if own is None:
            continue
        for test in retrieval_tests(evaluation):
            score, whole = ndcg10(row, [test]), ndcg10(own, [test])
            if score is not None and whole:
                lines.append(
                    f"{test} nDCG@10, the student's queries among the documents of {row.documents} ({row.dim}"
                    f" dimensions): {score:.3f}, {score / whole:.1%} of its own {whole:.3f}"
                )
    return lines
