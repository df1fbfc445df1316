"""The scores of a benchmark, as ``jasper mteb`` left them in the run's folder."""

from __future__ import annotations

from jasper_jax.evaluation.benchmark_scores import BenchmarkScores
from jasper_jax.reporting.page import Section
from jasper_jax.reporting.tables import Cell, Table
from jasper_jax.runtime.shown import shown


def benchmark_section(scores: BenchmarkScores) -> Section:
    """A row for each task and mean, a column for each model and dimension; the best of a row is marked."""
    table = Table(["type", "task", *(shown(model.title(" ")) for model in scores.models)])
    for row in scores.rows():
        digits = ["–" if score is None else f"{score:.2f}" for score in row.scores]
        best = f"{max((score for score in row.scores if score is not None), default=0):.2f}"
        marked = len(digits) > 1
        cells = [Cell(text, score, marked and text == best) for text, score in zip(digits, row.scores)]
        table.add(shown(row.kind), shown(row.name), *cells)
    section = Section("mteb", "MTEB", "The main score of each task, in percent, by MTEB's own protocol.")
    section.tables = [table]
    return section
