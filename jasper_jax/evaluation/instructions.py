"""Robustness to instructions (arXiv 2412.19048, section 4.1): retrieval under other wordings of the prompts.

Each kind of text gets each wording in turn, while the other kind keeps the model's own prompt, so that its vectors are
those of the plain scores. Letters: ``n`` texts, ``D`` a model's vectors before its heads, ``E`` of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jasper_jax.assets.corpora import RetrievalTest
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.text_tests import PARTS, TextTests


class InstructionRow(BaseModel):
    """A provider's nDCG@10 on one test, with its own prompt for ``kind`` and with other wordings of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    provider: str
    role: str
    dim: int
    head: str | None = None
    test: str
    kind: str
    plain: float
    """With the model's own prompts."""
    mean: float
    spread: float
    """Standard deviation over the wordings."""
    worst: float
    worst_wording: str
    wordings: dict[str, float]
    """By wording."""


class Output(NamedTuple):
    """Vectors of a model that are scored: ``fields`` of their rows, and from the model's vectors ``[n, D]`` to them."""

    fields: Mapping[str, Any]
    of: Callable[[np.ndarray], np.ndarray]


def instruction_rows(
    tests: TextTests, vectors: Mapping[str, np.ndarray], outputs: Sequence[Output]
) -> list[InstructionRow]:
    """The rows of one model: of each test, kind and output. ``vectors [n, D]``: the model's, of the tests' lists and of
    ``tests.reworded``."""
    rows: list[InstructionRow] = []
    for name, test in tests.all_retrieval.items():
        own = [{kind: out.of(vectors[f"{name}/{part}"]) for kind, part in PARTS.items()} for out in outputs]
        for kind, part in PARTS.items():
            again = {key: x.wording for key, x in tests.reworded.items() if x.list == f"{name}/{part}"}
            for out, plain in zip(outputs, own) if again else ():
                scores = {again[key]: _ndcg10({**plain, kind: out.of(vectors[key])}, test) for key in again}
                rows.append(_row(out.fields, name, kind, _ndcg10(plain, test), scores))
    return rows


def _ndcg10(vectors: Mapping[str, np.ndarray], test: RetrievalTest) -> float:
    # The interval is not used, and would take longer than the ranking.
    return score_retrieval(vectors["query"], vectors["passage"], test, resamples=1).ndcg10.value


def _row(fields: Mapping[str, Any], test: str, kind: str, plain: float, scores: dict[str, float]) -> InstructionRow:
    values, worst = list(scores.values()), min(scores, key=scores.__getitem__)
    return InstructionRow(
        **fields,
        test=test,
        kind=kind,
        plain=plain,
        mean=float(np.mean(values)),
        spread=float(np.std(values)),
        worst=scores[worst],
        worst_wording=worst,
        wordings=scores,
    )


def instruction_table(rows: Sequence[InstructionRow]) -> Table:
    """nDCG@10 plain, and its mean, spread and worst over the wordings, a line for each row."""
    count = max(len(row.wordings) for row in rows)
    table = Table(box=SIMPLE_HEAD, title=f"nDCG@10 under up to {count} wordings of a prompt", pad_edge=False)
    for title in ("provider", "dim", "test", "prompt of", "own", "mean", "spread", "worst", "with"):
        table.add_column(title, justify="right" if title in ("dim", "own", "mean", "spread", "worst") else "left")
    for row in rows:
        provider = f"{row.provider}, {row.head}" if row.head else row.provider
        scores = [f"{value:.3f}" for value in (row.plain, row.mean, row.spread, row.worst)]
        table.add_row(provider, str(row.dim), row.test, row.kind, *scores, repr(row.worst_wording))
    return table
