"""Quality by dimension and by bytes per vector: the final student, its teachers, and what needs no training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jasper_jax.evaluation.curves import one_per_dimension
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows, ndcg10, retrieval_tests
from jasper_jax.evaluation.precisions import PrecisionRow
from jasper_jax.evaluation.retrieval import Interval
from jasper_jax.reporting.figures import Figure, Trace, colour, log2_axis, plain, rounded

FLOAT32 = 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Measure:
    """A column of the evaluation that a figure can show."""

    title: str
    of: Callable[[EvaluationRow], Interval | None]
    """The score; an interval without width where none was measured."""
    test: str | None = None
    """The retrieval test, of which there are scores in fewer bits."""


def measures(evaluation: Evaluation) -> list[Measure]:
    """Those that the final student has: each retrieval test, their mean, the held-out pairs, similarity, agreement."""
    names = retrieval_tests(evaluation)
    judged = dict.fromkeys(name for row in evaluation.rows for name in row.similarity)
    found = [
        *(Measure(f"{name} nDCG@10", lambda row, name=name: _retrieval(row, name), name) for name in names),
        Measure("held-out pairs nDCG@10", lambda row: row.pairs.ndcg10 if row.pairs else None),
        *(Measure(f"{name} Spearman", lambda row, name=name: _similarity(row, name)) for name in judged),
        Measure("agreement with the teachers (Spearman)", _agreement),
        *(
            Measure(f"{split.replace('_', ' ')} images, text→image R@10", lambda row, split=split: _images(row, split))
            for split in dict.fromkeys(split for row in evaluation.rows for split in row.images)
        ),
    ]
    if len(names) > 1:
        found.insert(len(names), Measure("mean nDCG@10", lambda row: _exact(ndcg10(row, names))))
    students = final_rows(evaluation)
    return [measure for measure in found if any(measure.of(row) for row in students)]


def quality_figures(evaluation: Evaluation, measure: Measure) -> tuple[Figure, Figure]:
    """By dimension, and by bytes per vector."""
    by_dim, by_bytes = (_traces(evaluation, measure, size) for size in (1, FLOAT32))
    rows = [row for row in evaluation.rows if measure.of(row)]
    dims = {row.dim for row in final_rows(evaluation)}
    sizes = {FLOAT32 * dim for dim in dims}
    by_bytes += _precision_traces(evaluation.precisions, measure.test)
    if measure.test is not None:
        sizes |= {row.bytes for row in evaluation.precisions}
    layout = {"yaxis": {"title": {"text": plain(measure.title)}}}
    teachers = {row.dim for row in rows if row.role == "teacher"}
    return (
        Figure(measure.title, by_dim, {**layout, "xaxis": log2_axis("dimensions", dims | teachers)}),
        Figure(measure.title, by_bytes, {**layout, "xaxis": log2_axis("bytes per vector", sizes)}),
    )


def _traces(evaluation: Evaluation, measure: Measure, size: int) -> list[Trace]:
    """Points at ``size`` times the dimension."""
    rows = [row for row in evaluation.rows if measure.of(row)]
    students = [row for row in final_rows(evaluation) if measure.of(row)]
    traces: list[Trace] = []
    teachers = [row for row in rows if row.role in ("teacher", "teachers")]
    for index, row in enumerate(teachers, 1):
        traces.append(
            score_trace(row.provider, [row], measure, size, colour(index), symbol="diamond", mode="markers", marker=10)
        )
        for how, dash, visible in (("SVD", "dot", True), ("cut", "dash", "legendonly")):
            free = [r for r in rows if r.provider == f"{row.provider}, {how}"]
            if free:
                trace = score_trace(free[0].provider, free, measure, size, colour(index), symbol="square", marker=5)
                trace["line"] |= {"dash": dash, "width": 1.2}
                traces.append({**trace, "visible": visible})
    before = [row for row in rows if row.role == "student" and row.stage == 0]
    for provider in dict.fromkeys(row.provider for row in before):
        of_provider = [row for row in before if row.provider == provider]
        trace = score_trace(provider, of_provider, measure, size, "@faint", symbol="circle-open", marker=6)
        trace["line"] |= {"dash": "dot", "width": 1.2}
        traces.append(trace)
    shades = {row.provider: colour(index) for index, row in enumerate(teachers, 1)}
    for row in rows:
        if row.role == "asymmetric":
            shade = shades.get(row.documents or "", "@faint")
            trace = score_trace(row.provider, [row], measure, size, shade, symbol="star", mode="markers", marker=10)
            traces.append({**trace, "visible": "legendonly"})
    if students:
        line = one_per_dimension(students)
        traces.append(score_trace("student", line, measure, size, colour(0), symbol="circle", marker=8))
        traces[-1]["line"]["width"] = 2.6
        traces[-1]["legendrank"] = 1
        if hidden := [row for row in students if row not in line]:
            name = "student, other heads"
            traces.append(
                score_trace(name, hidden, measure, size, colour(0), symbol="circle-open", mode="markers", marker=8)
            )
    return traces


def score_trace(
    name: str,
    rows: Iterable[EvaluationRow],
    measure: Measure,
    size: int,
    shade: str,
    *,
    symbol: str,
    mode: str = "lines+markers",
    marker: int,
) -> Trace:
    """``rows`` at ``size`` times their dimension, with the intervals of ``measure``."""
    rows = sorted(rows, key=lambda row: row.dim)
    scores = [score for row in rows if (score := measure.of(row))]
    trace: Trace = {
        "type": "scatter",
        "name": plain(name),
        "mode": mode,
        "x": [row.dim * size for row in rows],
        "y": rounded(score.value for score in scores),
        "text": [f"{row.dim} dimensions" + (f", {plain(row.head)}" if row.head else "") for row in rows],
        "hovertemplate": "%{text}: %{y:.3f}<extra>%{fullData.name}</extra>",
        "line": {"color": shade},
        "marker": {"color": shade, "symbol": symbol, "size": marker},
    }
    if any(score.high > score.low for score in scores):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": rounded(max(0.0, score.high - score.value) for score in scores),
            "arrayminus": rounded(max(0.0, score.value - score.low) for score in scores),
            "color": shade,
            "thickness": 1.2,
            "width": 3,
        }
    return trace


def _precision_traces(rows: list[PrecisionRow], test: str | None) -> Iterable[Trace]:
    """The student's vectors in fewer bits; float32 is its own line."""
    names = dict.fromkeys(row.precision for row in rows if test in row.retrieval and row.precision != "float32")
    for index, precision in enumerate(names):
        line = sorted((row for row in rows if row.precision == precision), key=lambda row: row.bytes)
        yield {
            "type": "scatter",
            "name": plain(f"student, {precision}"),
            "mode": "lines+markers",
            "x": [row.bytes for row in line],
            "y": rounded(row.retrieval[test].ndcg10.value for row in line if test),
            "text": [f"{row.dim} dimensions" for row in line],
            "hovertemplate": "%{text}: %{y:.3f}<extra>%{fullData.name}</extra>",
            "line": {"color": colour(index + 3), "dash": "dashdot", "width": 1.6},
            "marker": {"color": colour(index + 3), "size": 6, "symbol": "triangle-up"},
        }


def _exact(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, value, value)


def _retrieval(row: EvaluationRow, name: str) -> Interval | None:
    return row.retrieval[name].ndcg10 if name in row.retrieval else None


def _similarity(row: EvaluationRow, name: str) -> Interval | None:
    return _exact(row.similarity[name].spearman) if name in row.similarity else None


def _agreement(row: EvaluationRow) -> Interval | None:
    return _exact(row.agreement.spearman) if row.agreement else None


def _images(row: EvaluationRow, split: str) -> Interval | None:
    return _exact(row.images[split].text_to_image.recall10) if split in row.images else None
