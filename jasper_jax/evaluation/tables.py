"""The evaluation of a run as tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jasper_jax.evaluation.evaluation import (
    STUDENTS,
    Evaluation,
    EvaluationRow,
    best_of,
    ndcg10,
    percent,
    retrieval_names,
)
from jasper_jax.evaluation.retrieval import Interval
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.markdown import markdown_text

ABSENT = "–"
_Cell = TypeVar("_Cell")
_ROLES = ("teacher", "teachers", "baseline", "student", "asymmetric", "model")


def console_table(evaluation: Evaluation, test: str | None = None) -> Table:
    """All columns for the terminal, grouped by provider, the best of each column bold.

    With one retrieval test, or if ``test`` names one, its four metrics; with several, the nDCG@10 of each and the mean.
    """
    rows, columns = ordered_rows(evaluation), score_columns(evaluation, test)
    has_heads = any(row.head for row in rows)
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="±: half the 95% bootstrap interval over queries; bold: best of a column",
    )
    table.add_column("provider", overflow="fold")
    if has_heads:
        table.add_column("head")
    for title in ("dim", *(column.title for column in columns)):
        table.add_column(title, justify="right", overflow="fold")
    best = [column.best(rows) for column in columns]
    for _, group in groupby(rows, key=lambda row: (row.role in STUDENTS and row.role, row.stage)):
        table.add_section()
        previous = None
        for row in group:
            provider = row.provider if row.provider != previous else ""
            head = [row.head or ""] if has_heads else []
            scores = [c.show(row, bold, best=b) for c, b in zip(columns, best)]
            table.add_row(provider, *head, str(row.dim), *scores)
            previous = row.provider
    return table


def markdown_table(evaluation: Evaluation, test: str | None = None) -> str:
    """The main columns as a Markdown table, for a README or a model card; ends with a newline."""
    rows = ordered_rows(evaluation)
    columns = [column for column in score_columns(evaluation, test) if column.compact]
    best = [column.best(rows) for column in columns]
    several = len({row.head for row in rows if row.head}) > 1
    lines = [
        ["provider", "dim", *(markdown_text(column.title) for column in columns)],
        ["---", *["---:"] * (1 + len(columns))],
    ]
    for row in rows:
        provider = f"{row.provider} ({row.head})" if several and row.head else row.provider
        scores = [c.show(row, "**{}**".format, best=b) for c, b in zip(columns, best)]
        lines.append([markdown_text(provider), str(row.dim), *scores])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def ordered_rows(evaluation: Evaluation) -> list[EvaluationRow]:
    """Teachers, then the student by stage; a provider's rows together, by decreasing dimension."""
    first = {row.provider: i for i, row in reversed(list(enumerate(evaluation.rows)))}
    return sorted(
        evaluation.rows, key=lambda row: (_ROLES.index(row.role), row.stage or 0, first[row.provider], -row.dim)
    )


@dataclass(frozen=True)
class Column:
    """A column of scores; a ``compact`` one is in Markdown tables too."""

    title: str
    value: Callable[[EvaluationRow], float | None]
    half: Callable[[EvaluationRow], float] | None = None
    form: str = "{:.3f}"
    compact: bool = True
    lower_is_better: bool = False

    def show(self, row: EvaluationRow, marked: Callable[[str], _Cell], best: float | None) -> _Cell | str:
        """The row's cell, ``marked`` if it shows the same digits as the ``best``."""
        value = self.value(row)
        if value is None or best is None:
            return ABSENT
        digits = self.form.format(value)
        text = digits + (f" ± {self.half(row):.3f}" if self.half else "")
        return marked(text) if digits == self.form.format(best) else text

    def best(self, rows: list[EvaluationRow]) -> float | None:
        values = [v for row in rows if (v := self.value(row)) is not None]
        return (min if self.lower_is_better else max)(values, default=None)


def score_columns(evaluation: Evaluation, test: str | None = None) -> list[Column]:
    """The columns of a table that have a score; ``test`` as of :func:`console_table`."""
    names = retrieval_names(evaluation, test)
    best = best_of(evaluation, "teacher", names)
    columns = [_retrieval(name, "ndcg10", f"{name} nDCG@10", interval=True) for name in names]
    if len(names) == 1:
        columns = [
            _retrieval(names[0], "ndcg10", f"{names[0]} nDCG@10", interval=True),
            _retrieval(names[0], "recall1", "Recall@1"),
            _retrieval(names[0], "recall10", "Recall@10"),
            _retrieval(names[0], "mrr10", "MRR@10"),
        ]
    elif names:
        columns.append(Column("mean nDCG@10", lambda row: ndcg10(row, names)))
    # Without teachers the student is compared with the model before training, which has a head.
    itself = any(row.role == "teacher" and row.head for row in evaluation.rows)
    title = "of the model itself" if itself else "of better teacher"
    columns.append(Column(title, lambda row: percent(ndcg10(row, names), best), form="{:.1f}%", compact=False))
    columns.append(Column("held-out pairs nDCG@10", lambda row: row.pairs.ndcg10.value if row.pairs else None))
    columns += [_similarity(name) for name in dict.fromkeys(n for row in evaluation.rows for n in row.similarity)]
    columns += [_accuracy(name) for name in dict.fromkeys(n for row in evaluation.rows for n in row.classification)]
    columns += [
        Column(
            "M weights",
            lambda row: None if row.weights is None else row.weights / 1e6,
            form="{:.1f}",
            lower_is_better=True,
        ),
        Column("agreement", lambda row: row.agreement.spearman if row.agreement else None),
        Column("neighbours", lambda row: row.agreement.overlap if row.agreement else None, compact=False),
        *(column for split in ("test", "held_out") for column in _image_columns(split)),
    ]
    return [column for column in columns if column.best(evaluation.rows) is not None]


def _retrieval(name: str, field: str, title: str, interval: bool = False) -> Column:
    def score(row: EvaluationRow) -> Interval:
        return getattr(row.retrieval[name], field)

    return Column(
        title,
        lambda row: score(row).value if name in row.retrieval else None,
        (lambda row: score(row).half) if interval else None,
    )


def _image_columns(split: str) -> list[Column]:
    """Recall of images by captions and of captions by images; only the first column for held-out pairs."""

    def score(direction: str, field: str) -> Callable[[EvaluationRow], float | None]:
        return lambda row: getattr(getattr(row.images[split], direction), field) if split in row.images else None

    suffix = "" if split == "test" else " held out"
    columns = [
        Column(f"text→image R@10{suffix}", score("text_to_image", "recall10")),
        Column(f"R@1{suffix}", score("text_to_image", "recall1"), compact=split == "test"),
        Column(f"image→text R@10{suffix}", score("image_to_text", "recall10"), compact=split == "test"),
        Column(f"R@1 i→t{suffix}", score("image_to_text", "recall1"), compact=False),
        Column(
            f"median rank{suffix}",
            score("text_to_image", "median_rank"),
            form="{:.0f}",
            compact=False,
            lower_is_better=True,
        ),
    ]
    return columns if split == "test" else columns[:1]


def _similarity(name: str) -> Column:
    return Column(
        f"{name.capitalize()} Spearman",
        lambda row: row.similarity[name].spearman if name in row.similarity else None,
    )


def _accuracy(name: str) -> Column:
    return Column(
        f"{name} accuracy",
        lambda row: row.classification[name].accuracy if name in row.classification else None,
    )
