"""Tables of scores: every row of an evaluation."""

from __future__ import annotations

from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.evaluation.tables import Column, ordered_rows, score_columns
from jasper_jax.reporting.tables import Cell, Table, as_cell


def score_table(evaluation: Evaluation, caption: str) -> Table:
    """Every provider in every dimension, with all scores; the best of a column is marked."""
    rows, columns = ordered_rows(evaluation), score_columns(evaluation)
    table = Table(["provider", "head", "dim", "bytes", *(column.title for column in columns)], caption=caption)
    best = [column.best(rows) for column in columns]
    for row in rows:
        scores = [_cell(column, row, top) for column, top in zip(columns, best)]
        table.add(row.provider, row.head or "", as_cell(row.dim, "{}"), 4 * row.dim, *scores)
    return table


def _cell(column: Column, row: EvaluationRow, best: float | None) -> Cell:
    value = column.value(row)
    text = column.show(row, lambda digits: digits, best=best)
    is_best = value is not None and best is not None and column.form.format(value) == column.form.format(best)
    return Cell(text, value, is_best)
