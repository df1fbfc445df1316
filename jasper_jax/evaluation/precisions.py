"""What vectors in fewer bits cost: retrieval with the final student's vectors in int8 and binary, beside float32.

int8 codes are compared as an index compares them, by the cosine of the codes; binary ones by Hamming distance, alone or
to choose ``CANDIDATES`` times as many passages, which the float32 query then ranks: against their stored signs, or
against their float32 vectors, which are read from elsewhere. Letters: ``Q`` queries, ``N`` passages, ``E`` dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jasper_jax.encoders.quantization import measure_ranges, quantize
from jasper_jax.evaluation.retrieval import DEPTH, RANKED, RetrievalScore, rank, score_ranking
from jasper_jax.evaluation.similarity import unit
from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.markdown import markdown_text
from jasper_jax.student.ranges import LEAST_TEXTS, MOST_TEXTS

CANDIDATES = 4


class PrecisionRow(BaseModel):
    """The retrieval scores of the student's vectors of one dimension in one precision."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dim: int
    precision: str
    bytes: int
    """Of a vector in the index."""
    retrieval: dict[str, RetrievalScore]
    """By the test's name in the recipe."""


def refuse_impossible(recipe: Recipe, held_out: int) -> None:
    """UserError if the recipe asks for these scores and lacks a retrieval test, or ``held_out`` texts are too few."""
    if not recipe.evaluation.precisions:
        return
    if not recipe.evaluation.retrieval:
        raise UserError("evaluation.precisions: needs a test in evaluation.retrieval; add one, or set it to false")
    if held_out < LEAST_TEXTS:
        raise UserError(
            f"evaluation.precisions: int8 needs at least {LEAST_TEXTS} held-out texts for its ranges, got {held_out};"
            " raise texts.held_out, or set it to false"
        )


def precision_rows(dim: int, vectors: Mapping[str, np.ndarray], tests: TextTests) -> list[PrecisionRow]:
    """The rows of ``vectors [n, dim]`` of the tests, by list, those of held-out texts among them."""
    vectors = {name: unit(x) for name, x in vectors.items()}
    ranges = measure_ranges(vectors[HELD_OUT][:MOST_TEXTS])
    scores: dict[tuple[str, int], dict[str, RetrievalScore]] = {}
    for name, test in tests.retrieval.items():
        queries, passages = vectors[f"{name}/queries"], vectors[f"{name}/passages"]
        for precision, size, nearest in rankings(queries, passages, ranges, list(test.passages)):
            scores.setdefault((precision, size), {})[name] = score_ranking(nearest, test)
    return [PrecisionRow(dim=dim, precision=p, bytes=size, retrieval=found) for (p, size), found in scores.items()]


def rankings(
    queries: np.ndarray, passages: np.ndarray, ranges: np.ndarray, ids: Sequence[str]
) -> Iterator[tuple[str, int, np.ndarray]]:
    """``(precision, bytes of a vector, positions [Q, 11] of the nearest passages)`` of unit vectors ``[Q, E]`` and
    ``[N, E]`` in each precision."""
    dim = queries.shape[1]
    packed = (dim + 7) // 8
    yield "float32", 4 * dim, rank(queries, passages, RANKED, ids)
    query_codes, codes = (quantize(x, "int8", ranges).astype(np.float32) for x in (queries, passages))
    yield "int8", dim, rank(query_codes, codes, RANKED, ids)
    signs = _signs(passages)
    candidates = rank(_signs(queries), signs, CANDIDATES * DEPTH, ids)
    yield "binary", packed, candidates[:, :RANKED]
    yield "binary, float32 queries", packed, rescored(queries, signs, candidates)
    yield "binary, rescored", packed, rescored(queries, passages, candidates)


def rescored(queries: np.ndarray, passages: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """``candidates [Q, K]``, positions in ``passages [N, E]``, ordered by their inner product with ``queries [Q, E]``;
    the first 11, equal ones in the given order."""
    out = np.empty((len(candidates), min(RANKED, candidates.shape[1])), np.int64)
    for i, chosen in enumerate(candidates):
        order = np.argsort(-(passages[chosen] @ queries[i]), kind="stable")
        out[i] = chosen[order[:RANKED]]
    return out


def _signs(vectors: np.ndarray) -> np.ndarray:
    """The bits of binary vectors as ±1 ``[n, E]``: the smaller the Hamming distance, the larger the cosine."""
    bits = np.unpackbits(quantize(vectors, "ubinary"), axis=1)[:, : vectors.shape[1]]
    return 2 * bits.astype(np.float32) - 1


def precision_table(rows: Sequence[PrecisionRow]) -> Table:
    """nDCG@10 of every row, and its percentage of float32's at the same dimension."""
    titles, lines = _cells(rows)
    table = Table(box=SIMPLE_HEAD, title="Vectors in fewer bits", pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title == "precision" else "right")
    for previous, line in zip([None, *lines], lines):
        if previous and previous[0] != line[0]:
            table.add_section()
        table.add_row(*line)
    return table


def precision_markdown(rows: Sequence[PrecisionRow]) -> str:
    """The same as a Markdown table; ends with a newline."""
    titles, lines = _cells(rows)
    rule = ["---" if title == "precision" else "---:" for title in titles]
    head, *body = [list(map(markdown_text, line)) for line in (titles, *lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))


def _cells(rows: Sequence[PrecisionRow]) -> tuple[list[str], list[list[str]]]:
    """The head of the table, and its lines."""
    names = list(rows[0].retrieval)
    whole = {row.dim: row for row in rows if row.precision == "float32"}
    lines = []
    for row in rows:
        line = [str(row.dim), row.precision, f"{row.bytes:,}"]
        for name in names:
            score, full = row.retrieval[name].ndcg10, whole[row.dim].retrieval[name].ndcg10.value
            line += [f"{score.value:.3f} ± {score.half:.3f}", f"{score.value / full:.1%}" if full else ""]
        lines.append(line)
    return ["dim", "precision", "bytes", *(x for name in names for x in (f"{name} nDCG@10", "of float32"))], lines
