"""The evaluation of a run: a row for each provider of vectors, written as JSON (and shown: ``tables``).

A row's role is ``teacher``, ``teachers`` (concatenated), ``baseline`` (teachers' vectors without training, shortened or
with equal weights where the recipe has others), ``student``, whose stage is 0 before training, ``asymmetric`` (a
student's queries, a teacher's documents), or ``model``: a folder that no run made. Scores may be absent; a column
without any score is not shown.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from jasper_jax.evaluation.agreement import AgreementScore
from jasper_jax.evaluation.classification import ClassificationScore
from jasper_jax.evaluation.images import ImageScore
from jasper_jax.evaluation.instructions import InstructionRow
from jasper_jax.evaluation.precisions import PrecisionRow
from jasper_jax.evaluation.record_file import read_record
from jasper_jax.evaluation.retrieval import RetrievalScore
from jasper_jax.evaluation.similarity import SimilarityScore
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sealed, write_atomic

STUDENTS = ("student", "asymmetric")


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


def to_json(evaluation: Evaluation, path: str | os.PathLike) -> None:
    """Write ``evaluation.json``, atomically; equal evaluations give equal bytes."""
    tree = evaluation.model_dump(mode="json")
    tree["metadata"] = dict(sorted(tree["metadata"].items()))
    text = json.dumps(sealed(tree), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(Path(path), text + "\n")


def from_json(path: str | os.PathLike) -> Evaluation:
    """Read what ``to_json`` wrote; UserError, with the key, for anything else."""
    return read_record(Path(path), Evaluation, "an evaluation of format 1")


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
    names = retrieval_names(evaluation, test)
    teacher, teachers = (best_of(evaluation, role, names) for role in ("teacher", "teachers"))
    return [
        Retained(row.head, row.dim, score, percent(score, teacher), percent(score, teachers))
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
            (value, row.provider) for row in evaluation.rows if row.role not in STUDENTS and (value := score(row))
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


def retrieval_names(evaluation: Evaluation, test: str | None) -> list[str]:
    """The retrieval test ``test``, or all; UserError if there is none of this name."""
    names = retrieval_tests(evaluation)
    if test is not None and test not in names:
        raise UserError(f"no retrieval test {test!r} in the evaluation; it has {', '.join(names) or 'none'}")
    return names if test is None else [test]


def best_of(evaluation: Evaluation, role: str, names: list[str]) -> float | None:
    """The best mean nDCG@10 over the named tests of the rows of ``role``; None without one."""
    scores = [ndcg10(row, names) for row in evaluation.rows if row.role == role]
    return max((score for score in scores if score is not None), default=None)


def percent(score: float | None, reference: float | None) -> float | None:
    """``score`` in percent of ``reference``; None if one is missing."""
    return None if score is None or not reference else 100 * score / reference
