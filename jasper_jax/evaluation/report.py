"""The evaluation of a run: one row a provider of vectors, written as JSON and shown as tables.

A row's role says what it is: a ``teacher``, the ``teachers`` concatenated, or the ``student``, whose stage
is 0 before training. Scores that were not taken are absent, and a column that no row fills is not shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jasper_jax.evaluation.agreement import AgreementScore
from jasper_jax.evaluation.images import ImageScore
from jasper_jax.evaluation.retrieval import Interval, RetrievalScore
from jasper_jax.evaluation.similarity import SimilarityScore
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import is_whole, parse_json, sealed, write_atomic

ABSENT = "–"
_ROLES = ("teacher", "teachers", "student")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EvaluationRow(_Record):
    """One provider of vectors in one dimension, and its scores."""

    provider: str
    """What the tables call it, e.g. "teacher mpnet", "student before training", "after stage 2"."""
    role: Literal["teacher", "teachers", "student"]
    dim: Annotated[int, Field(ge=1)]
    head: str | None = None
    stage: Annotated[int, Field(ge=0)] | None = None
    """The student's last finished stage, 0 before training; None for teachers."""
    retrieval: dict[str, RetrievalScore] = {}
    """By the test's name in the recipe."""
    similarity: dict[str, SimilarityScore] = {}
    agreement: AgreementScore | None = None
    images: dict[str, ImageScore] = {}
    """By split of the image-caption pairs."""


class Evaluation(_Record):
    format: Literal[1] = 1
    rows: list[EvaluationRow] = []
    metadata: dict[str, JsonValue] = {}
    """What the caller wants to keep beside the scores: recipe, versions, date, machine."""


@dataclass(frozen=True)
class Retained:
    """What a student's vectors keep of its teachers' nDCG@10, in percent."""

    head: str | None
    dim: int
    ndcg10: float
    of_teacher: float | None
    """Of the better single teacher."""
    of_teachers: float | None
    """Of the teachers concatenated."""


# --------------------------------------------------------------------------------------------- files


def to_json(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Write ``evaluation.json``, atomically; equal evaluations give equal bytes."""
    tree = evaluation.model_dump(mode="json")
    tree["metadata"] = dict(sorted(tree["metadata"].items()))
    text = json.dumps(sealed(tree), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(Path(path), text + "\n")


def from_json(path: str | os.PathLike) -> Evaluation:
    """Read what ``to_json`` wrote; anything else is a ``UserError`` that names the place."""
    try:
        tree = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        why = f"the file: Invalid JSON ({error})"
        raise UserError(f"{path}: not an evaluation of format 1: {why}; `jasper evaluate` writes a new one") from error
    if isinstance(tree, dict):
        if not is_whole(tree):
            raise UserError(f"{path}: damaged (its checksum differs); `jasper evaluate` writes a new one")
        tree.pop("checksum", None)
    try:
        return Evaluation.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path}: not an evaluation of format 1: {where}: {first['msg']}; `jasper evaluate` writes a new one"
        ) from error


# ------------------------------------------------------------------------------------------ questions


def retrieval_tests(evaluation: Evaluation) -> list[str]:
    """Names of the retrieval tests, in the order they first appear."""
    return list(dict.fromkeys(name for row in evaluation.rows for name in row.retrieval))


def ndcg10(row: EvaluationRow, names: list[str]) -> float | None:
    """nDCG@10, the mean over the named tests; None where the row lacks one of them."""
    if not names or any(name not in row.retrieval for name in names):
        return None
    return sum(row.retrieval[name].ndcg10.value for name in names) / len(names)


def final_rows(evaluation: Evaluation) -> list[EvaluationRow]:
    """The student's rows after its last stage, the largest dimension first."""
    rows = [row for row in evaluation.rows if row.role == "student" and row.stage]
    last = max((row.stage or 0 for row in rows), default=0)
    return sorted((row for row in rows if row.stage == last), key=lambda row: -row.dim)


def retained(evaluation: Evaluation, test: str | None = None) -> list[Retained]:
    """Per dimension of the final student, the percentage of its teachers' nDCG@10 that it keeps.

    ``test`` names a retrieval test; None takes the mean over all of them.
    """
    names = _names(evaluation, test)
    teacher, teachers = (_best(evaluation, role, names) for role in ("teacher", "teachers"))
    return [
        Retained(row.head, row.dim, score, _percent(score, teacher), _percent(score, teachers))
        for row in final_rows(evaluation)
        if (score := ndcg10(row, names)) is not None
    ]


def _names(evaluation: Evaluation, test: str | None) -> list[str]:
    known = retrieval_tests(evaluation)
    if test is not None and test not in known:
        raise UserError(f"no retrieval test {test!r} in the evaluation; it has {', '.join(known) or 'none'}")
    return known if test is None else [test]


def _best(evaluation: Evaluation, role: str, names: list[str]) -> float | None:
    scores = [ndcg10(row, names) for row in evaluation.rows if row.role == role]
    return max((score for score in scores if score is not None), default=None)


def _percent(score: float | None, reference: float | None) -> float | None:
    return None if score is None or not reference else 100 * score / reference


# --------------------------------------------------------------------------------------------- tables


def console_table(evaluation: Evaluation, test: str | None = None) -> Table:
    """All columns for the terminal, grouped by provider, the best of each column bold.

    With one retrieval test, or ``test`` naming one, its four metrics are shown; with several, the nDCG@10 of
    each and their mean.
    """
    rows, columns = _ordered(evaluation), _columns(evaluation, test)
    headed = any(row.head for row in rows)
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="± half the 95% bootstrap interval over queries; best of a column bold",
    )
    table.add_column("provider", overflow="fold")
    if headed:
        table.add_column("head")
    for title in ("dim", *(column.title for column in columns)):
        table.add_column(escape(title), justify="right", overflow="fold")
    best = [column.best(rows) for column in columns]
    for _, group in groupby(rows, key=lambda row: (row.role == "student", row.stage)):
        table.add_section()
        shown = None
        for row in group:
            provider = [escape(row.provider) if row.provider != shown else ""]
            head = [escape(row.head or "")] if headed else []
            scores = [c.show(row, bold="[bold]{}[/bold]", best=b) for c, b in zip(columns, best)]
            table.add_row(*provider, *head, str(row.dim), *scores)
            shown = row.provider
    return table


def markdown_table(evaluation: Evaluation, test: str | None = None) -> str:
    """The main columns as a Markdown table, for a README or a model card; ends with a newline."""
    rows = _ordered(evaluation)
    columns = [column for column in _columns(evaluation, test) if column.compact]
    best = [column.best(rows) for column in columns]
    several = len({row.head for row in rows if row.head}) > 1
    lines = [
        ["provider", "dim", *(column.title for column in columns)],
        ["---", *["---:"] * (1 + len(columns))],
    ]
    for row in rows:
        provider = f"{row.provider} ({row.head})" if several and row.head else row.provider
        scores = [c.show(row, bold="**{}**", best=b) for c, b in zip(columns, best)]
        lines.append([provider, str(row.dim), *scores])
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _ordered(evaluation: Evaluation) -> list[EvaluationRow]:
    """Teachers, then the student by stage; a provider's rows together, by falling dimension."""
    first = {row.provider: i for i, row in reversed(list(enumerate(evaluation.rows)))}
    return sorted(
        evaluation.rows,
        key=lambda row: (_ROLES.index(row.role), row.stage or 0, first[row.provider], -row.dim),
    )


@dataclass(frozen=True)
class _Column:
    title: str
    value: Callable[[EvaluationRow], float | None]
    half: Callable[[EvaluationRow], float] | None = None
    form: str = "{:.3f}"
    compact: bool = True
    least: bool = False

    def show(self, row: EvaluationRow, bold: str, best: float | None) -> str:
        """The row's cell, in ``bold`` where it shows the same digits as the ``best``."""
        value = self.value(row)
        if value is None or best is None:
            return ABSENT
        digits = self.form.format(value)
        text = digits + (f" ± {self.half(row):.3f}" if self.half else "")
        return bold.format(text) if digits == self.form.format(best) else text

    def best(self, rows: list[EvaluationRow]) -> float | None:
        values = [v for row in rows if (v := self.value(row)) is not None]
        return (min if self.least else max)(values, default=None)


def _columns(evaluation: Evaluation, test: str | None) -> list[_Column]:
    names = _names(evaluation, test)
    best = _best(evaluation, "teacher", names)
    columns = [_retrieval(name, "ndcg10", f"{name} nDCG@10", interval=True) for name in names]
    if len(names) == 1:
        columns = [
            _retrieval(names[0], "ndcg10", "nDCG@10", interval=True),
            _retrieval(names[0], "recall1", "Recall@1"),
            _retrieval(names[0], "recall10", "Recall@10"),
            _retrieval(names[0], "mrr10", "MRR@10"),
        ]
    elif names:
        columns.append(_Column("mean nDCG@10", lambda row: ndcg10(row, names)))
    # Without teachers the model before training, which has a head, is what the student is compared with.
    itself = any(row.role == "teacher" and row.head for row in evaluation.rows)
    title = "of the model itself" if itself else "of better teacher"
    columns.append(_Column(title, lambda row: _percent(ndcg10(row, names), best), form="{:.1f}%", compact=False))
    columns += [_similarity(name) for name in dict.fromkeys(n for row in evaluation.rows for n in row.similarity)]
    columns += [
        _Column("agreement", lambda row: row.agreement.spearman if row.agreement else None),
        _Column("neighbours", lambda row: row.agreement.overlap if row.agreement else None, compact=False),
        *(column for split in ("test", "held_out") for column in _image_columns(split)),
    ]
    return [column for column in columns if column.best(evaluation.rows) is not None]


def _retrieval(name: str, field: str, title: str, interval: bool = False) -> _Column:
    def score(row: EvaluationRow) -> Interval:
        return getattr(row.retrieval[name], field)

    return _Column(
        title,
        lambda row: score(row).value if name in row.retrieval else None,
        (lambda row: score(row).half) if interval else None,
    )


def _image_columns(split: str) -> list[_Column]:
    """Recall of images by captions and of captions by images; of the held-out pairs only the first number."""

    def score(direction: str, field: str) -> Callable[[EvaluationRow], float | None]:
        return lambda row: getattr(getattr(row.images[split], direction), field) if split in row.images else None

    said = "" if split == "test" else " held out"
    columns = [
        _Column(f"text→image R@10{said}", score("text_to_image", "recall10")),
        _Column(f"R@1{said}", score("text_to_image", "recall1"), compact=split == "test"),
        _Column(f"image→text R@10{said}", score("image_to_text", "recall10"), compact=split == "test"),
        _Column(f"R@1 i→t{said}", score("image_to_text", "recall1"), compact=False),
        _Column(f"median rank{said}", score("text_to_image", "median_rank"), form="{:.0f}", compact=False, least=True),
    ]
    return columns if split == "test" else columns[:1]


def _similarity(name: str) -> _Column:
    return _Column(
        f"{name.capitalize()} Spearman",
        lambda row: row.similarity[name].spearman if name in row.similarity else None,
    )
