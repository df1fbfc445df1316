"""The evaluation of a run: a row for each provider of vectors, written as JSON and shown as tables.

A row's role is ``teacher``, ``teachers`` (concatenated), ``baseline`` (a teacher's vectors shortened without training),
``student``, whose stage is 0 before training, ``asymmetric`` (a student's queries, a teacher's documents), or
``model``: a folder that no run made. Scores may be absent; a column without any score is not shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jasper_jax.evaluation.agreement import AgreementScore
from jasper_jax.evaluation.classification import ClassificationScore
from jasper_jax.evaluation.images import ImageScore
from jasper_jax.evaluation.instructions import InstructionRow
from jasper_jax.evaluation.precisions import PrecisionRow
from jasper_jax.evaluation.record_file import read_record
from jasper_jax.evaluation.retrieval import Interval, RetrievalScore
from jasper_jax.evaluation.similarity import SimilarityScore
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sealed, write_atomic
from jasper_jax.runtime.markdown import markdown_text

ABSENT = "–"
_Cell = TypeVar("_Cell")
_ROLES = ("teacher", "teachers", "baseline", "student", "asymmetric", "model")
_STUDENTS = ("student", "asymmetric")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EvaluationRow(_Record):
    """The scores of one provider of vectors in one dimension."""

    provider: str
    """Its name in the tables, e.g. "teacher mpnet", "student before training", "after stage 2"."""
    role: Literal["teacher", "teachers", "baseline", "student", "asymmetric", "model"]
    dim: Annotated[int, Field(ge=1)]
    weights: Annotated[int, Field(ge=0)] | None = None
    """Numbers that every token is multiplied with: the cost of a vector, whatever the machine."""
    head: str | None = None
    stage: Annotated[int, Field(ge=0)] | None = None
    """The student's last finished stage, 0 before training; None for teachers."""
    documents: str | None = None
    """The provider of the passages' vectors, if it is another than that of the queries'."""
    retrieval: dict[str, RetrievalScore] = {}
    """By the test's name in the recipe."""
    pairs: RetrievalScore | None = None
    """Retrieval of the held-out labelled pairs' passages by their queries."""
    similarity: dict[str, SimilarityScore] = {}
    classification: dict[str, ClassificationScore] = {}
    agreement: AgreementScore | None = None
    images: dict[str, ImageScore] = {}
    """By split of the image-caption pairs."""


class Evaluation(_Record):
    format: Literal[1] = 1
    rows: list[EvaluationRow] = []
    precisions: list[PrecisionRow] = []
    """The final student's vectors in fewer bits, if ``evaluation.precisions`` asks for them."""
    instructions: list[InstructionRow] = []
    """Retrieval under other wordings of the prompts, if ``evaluation.instructions`` asks for it."""
    metadata: dict[str, JsonValue] = {}
    """The recipe's name, the number of held-out texts, versions and machine."""


@dataclass(frozen=True)
class Retained:
    """A student's nDCG@10, and its percentage of the teachers'."""

    head: str | None
    dim: int
    ndcg10: float
    of_teacher: float | None
    """Of the best single teacher."""
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
    """Read what ``to_json`` wrote; UserError, with the key, for anything else."""
    return read_record(Path(path), Evaluation, "an evaluation of format 1")


# ------------------------------------------------------------------------------------------ questions


def retrieval_tests(evaluation: Evaluation) -> list[str]:
    """Names of the retrieval tests, in the order they first appear."""
    return list(dict.fromkeys(name for row in evaluation.rows for name in row.retrieval))


def ndcg10(row: EvaluationRow, names: list[str]) -> float | None:
    """nDCG@10, the mean over the named tests; None if the row lacks one of them."""
    if not names or any(name not in row.retrieval for name in names):
        return None
    return sum(row.retrieval[name].ndcg10.value for name in names) / len(names)


def final_rows(evaluation: Evaluation) -> list[EvaluationRow]:
    """The student's rows after its last stage, the largest dimension first."""
    rows = [row for row in evaluation.rows if row.role == "student" and row.stage]
    last = max((row.stage or 0 for row in rows), default=0)
    return sorted((row for row in rows if row.stage == last), key=lambda row: -row.dim)


def retained(evaluation: Evaluation, test: str | None = None) -> list[Retained]:
    """For each dimension of the final student, its nDCG@10 and the percentage of its teachers'. ``test`` names a
    retrieval test; None takes the mean over all."""
    names = _names(evaluation, test)
    teacher, teachers = (_best(evaluation, role, names) for role in ("teacher", "teachers"))
    return [
        Retained(row.head, row.dim, score, _percent(score, teacher), _percent(score, teachers))
        for row in final_rows(evaluation)
        if (score := ndcg10(row, names)) is not None
    ]


def beside_teachers(evaluation: Evaluation) -> list[str]:
    """A line for each test and dimension of the final student: its score and how far above or below the best teacher
    it is, the teachers concatenated among them."""
    scores: dict[str, Callable[[EvaluationRow], float | None]] = {
        **{f"{name} nDCG@10": partial(ndcg10, names=[name]) for name in retrieval_tests(evaluation)},
        "held-out pairs nDCG@10": lambda row: row.pairs.ndcg10.value if row.pairs else None,
    }
    lines = []
    for title, score in scores.items():
        taught = [
            (value, row.provider) for row in evaluation.rows if row.role not in _STUDENTS and (value := score(row))
        ]
        for row in final_rows(evaluation) if taught else ():
            if (value := score(row)) is None:
                continue
            best, name = max(taught)
            side = "above" if value > best else "below"
            lines.append(
                f"{title}, {row.dim} dimensions: {value:.3f}, {abs(value - best):.3f} {side} {name}'s {best:.3f}"
            )
    return lines


def better_without_training(evaluation: Evaluation) -> list[tuple[EvaluationRow, EvaluationRow]]:
    """The final student's rows that something free beats in nDCG@10, each with the best of what beats it: vectors that
    need no training, are no longer, and cost no more (``weights``)."""
    names = retrieval_tests(evaluation)
    free = [row for row in evaluation.rows if row.weights is not None and not row.stage and ndcg10(row, names)]
    found = []
    for student in final_rows(evaluation):
        score = ndcg10(student, names)
        if score is None or student.weights is None:
            continue
        rivals = [row for row in free if row.dim <= student.dim and (row.weights or 0) <= student.weights]
        best = max(rivals, key=lambda row: ndcg10(row, names) or 0, default=None)
        if best is not None and (ndcg10(best, names) or 0) > score:
            found.append((student, best))
    return found


def _names(evaluation: Evaluation, test: str | None) -> list[str]:
    names = retrieval_tests(evaluation)
    if test is not None and test not in names:
        raise UserError(f"no retrieval test {test!r} in the evaluation; it has {', '.join(names) or 'none'}")
    return names if test is None else [test]


def _best(evaluation: Evaluation, role: str, names: list[str]) -> float | None:
    scores = [ndcg10(row, names) for row in evaluation.rows if row.role == role]
    return max((score for score in scores if score is not None), default=None)


def _percent(score: float | None, reference: float | None) -> float | None:
    return None if score is None or not reference else 100 * score / reference


# --------------------------------------------------------------------------------------------- tables


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
    for _, group in groupby(rows, key=lambda row: (row.role in _STUDENTS and row.role, row.stage)):
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
    names = _names(evaluation, test)
    best = _best(evaluation, "teacher", names)
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
    columns.append(Column(title, lambda row: _percent(ndcg10(row, names), best), form="{:.1f}%", compact=False))
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
