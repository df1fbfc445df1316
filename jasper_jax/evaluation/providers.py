"""The providers of vectors that are scored: each teacher, all teachers concatenated, both shortened without training,
the student before training and after each stage, and its queries among a teacher's documents.

A model encodes the texts of every test once (``text_tests``); the vectors of the student's heads and nested dimensions
are projections of its pooled vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jasper_jax.checkpoints.checkpoint import Checkpoints, abstract
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.evaluation.asymmetric import asymmetric_rows
from jasper_jax.evaluation.image_tests import ImageTests
from jasper_jax.evaluation.precisions import PrecisionRow, precision_rows, refuse_impossible
from jasper_jax.evaluation.report import Evaluation, EvaluationRow
from jasper_jax.evaluation.results import origin
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.evaluation.teachers import TeacherScores, teacher_rows
from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
from jasper_jax.recipe.load import stores_dir
from jasper_jax.recipe.stages import needs
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.student.dimensions import providers
from jasper_jax.student.heads import nested_head, project_rows
from jasper_jax.student.source import StudentSource
from jasper_jax.student.spaces import teacher_spaces
from jasper_jax.student.start import make_student, make_tokenizer, student_embedder
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors


def evaluate(
    run: RunFolder, data: DataStores, teachers: TeacherVectors, source: StudentSource, sheet: Path | None = None
) -> Evaluation:
    """Score the teachers, and the student before training and after each finished stage. ``sheet``: where to draw the
    contact sheet of a student of images. ``source``: the student's folders, whose weights are not read.

    Raises:
      UserError: nothing is trained yet, or the recipe names a test that does not exist.
    """
    checkpoints = run.checkpoints()
    if not checkpoints.has(checkpoints.start()):
        raise UserError(f"{run.path}: nothing is trained yet; run jasper train first")
    texts = None if run.recipe.texts is None else TextStore.open(data.text_folder)
    tests = TextTests(run.recipe.evaluation, texts)
    refuse_impossible(run.recipe, tests.held_out)
    student = make_student(run.recipe, teachers.dim, source)
    dims = [dim for head in student.heads.values() for dim in head.dims] if run.recipe.evaluation.baselines else []
    taught_by = teacher_rows(teachers, stores_dir(run.recipe) / "evaluation", texts, tests, dims)
    rows = taught_by.rows

    tokenizer, shapes = make_tokenizer(student, source), abstract(student.shapes())
    with_images = needs(run.stages, "images") and run.recipe.evaluation.images
    images = ImageTests(data.pairs(), progress=data.progress) if with_images else None
    scores = StudentScores(run, student, tokenizer, tests, taught_by.reference, images, taught=teachers.needed)
    precisions: list[PrecisionRow] = []
    done = _stages_done(run, checkpoints, taught=teachers.needed)
    for stages in done:
        say(f"Evaluating the student {_when(run, stages)}")
        path = checkpoints.final(stages - 1) if stages else checkpoints.start()
        params = checkpoints.load(path, shapes)
        rows += scores.rows(params, stages)
        if stages == done[-1]:
            rows += scores.asymmetric(params, stages, teachers.dims, taught_by)
        if run.recipe.evaluation.precisions and stages == len(run.stages):
            precisions = scores.precisions(params)
    if images and sheet:
        images.draw(sheet)
    metadata = {"recipe": run.recipe.name, "held_out_texts": tests.held_out, "environment": environment()}
    metadata |= origin(run)
    return Evaluation(rows=rows, precisions=precisions, metadata=metadata)


class StudentScores:
    """The student's rows. To be called with the numbers of finished stages in ascending order."""

    def __init__(
        self,
        run: RunFolder,
        student: Student,
        tokenizer: Tokenizer,
        tests: TextTests,
        reference: np.ndarray | None,
        images: ImageTests | None,
        *,
        taught: bool,
    ):
        """``reference``: the vectors with which those of held-out texts are compared. ``taught``: whether teachers'
        vectors are learned."""
        self.run, self.student, self.tokenizer, self.tests, self.reference = run, student, tokenizer, tests, reference
        self.images, self.taught = images, taught
        self._encoder: Any = None
        self._pooled: dict[str, np.ndarray] = {}
        """Pooled vectors of the tests' texts by the encoder with parameters ``_encoder``."""

    def rows(self, params: Mapping[str, Any], stages: int) -> list[EvaluationRow]:
        """The rows of the student with ``params`` after ``stages`` stages; after 0, also of its pooled vectors."""
        # Images are scored as soon as a stage has learned from them, or the next one will.
        images = self.images if needs(self.run.stages[: stages + 1], "images") else None
        self._encode(params, images)
        rows = [] if stages else [self._pooled_row()]
        provider = _when(self.run, stages) if stages else "closed-form start"
        for head in self._heads(stages, images is not None):
            vectors = {name: project_rows(params["heads"][head], pooled) for name, pooled in self._pooled.items()}
            for dim in self.student.heads[head].dims:
                scores = self.tests.score({name: truncate(x, dim) for name, x in vectors.items()}, self.reference)
                scores["images"] = images.score(nested_head(params["heads"][head], dim)) if images else {}
                rows.append(
                    EvaluationRow(
                        provider=provider,
                        role="student",
                        dim=dim,
                        weights=self.student.encoder.weights_per_token,
                        head=head,
                        stage=stages,
                        **scores,
                    )
                )
        return rows

    def asymmetric(
        self, params: Mapping[str, Any], stages: int, dims: Mapping[str, int], teachers: TeacherScores
    ) -> list[EvaluationRow]:
        """The rows of its queries among the teachers' documents, of the student whose ``rows`` were made last.
        ``dims``: the teachers' dimensions."""
        spaces = teacher_spaces(self.run.recipe, self._heads(stages, False), dims) if stages else []
        if not spaces:
            return []
        head = spaces[0].head
        vectors = {name: project_rows(params["heads"][head], pooled) for name, pooled in self._pooled.items()}
        weights = self.student.encoder.weights_per_token
        rows = asymmetric_rows(vectors, spaces, teachers.vectors, self.tests, weights=weights, head=head, stage=stages)
        return list(rows)

    def precisions(self, params: Mapping[str, Any]) -> list[PrecisionRow]:
        """The rows in fewer bits, at each exported dimension, of the final student, whose ``rows`` were made last."""
        heads = {name: self.student.heads[name] for name in self._heads(len(self.run.stages), False)}
        rows: list[PrecisionRow] = []
        for dim, provider in providers(heads, self.run.recipe.export.dims).items():
            head = nested_head(params["heads"][provider.head], dim)
            rows += precision_rows(dim, {name: project_rows(head, x) for name, x in self._pooled.items()}, self.tests)
        return rows

    def _encode(self, params: Mapping[str, Any], images: ImageTests | None) -> None:
        """Make the pooled vectors of every test; those of texts again only if the encoder changed (not in stage 1)."""
        same = self._encoder is not None and _equal(self._encoder, params["encoder"])
        if same and images is None:
            return
        embedder = student_embedder(self.student, params, self.tokenizer)
        if not same:
            self._encoder = params["encoder"]
            self._pooled = {name: embedder.pooled(*texts) for name, texts in self.tests.lists.items()}
        if images:
            images.encode(embedder)

    def _pooled_row(self) -> EvaluationRow:
        """The model before training. Without teachers, its vectors are the reference for the trained student."""
        if self.reference is None:
            self.reference = self._pooled.get(HELD_OUT)
        return EvaluationRow(
            provider="student before training" if self.taught else "the model itself",
            role="student" if self.taught else "teacher",
            dim=self.student.width,
            weights=self.student.encoder.weights_per_token,
            head="pooled",
            stage=0 if self.taught else None,
            **self.tests.score(self._pooled, self.reference),
        )

    def _heads(self, stages: int, with_images: bool) -> Sequence[str]:
        """The heads that are trained or solved; without any, those of a next stage that learns from images."""
        done, rest = self.run.stages[:stages], self.run.stages[stages:]
        if done:
            heads = [head for head in self.student.heads if any(head in stage.heads for stage in done)]
        else:
            heads = [head for head in rest[0].heads if self.run.recipe.heads[head].init == "ridge"]
        return heads or (list(rest[0].heads) if with_images and rest and rest[0].learns_from("images") else [])


def _stages_done(run: RunFolder, checkpoints: Checkpoints, *, taught: bool) -> list[int]:
    """The numbers of finished stages after which the student is scored, as ``evaluation.stages`` says; 0 is before
    training."""
    finished = takewhile(lambda number: checkpoints.has(checkpoints.final(number)), range(len(run.stages)))
    numbers = [0, *(number + 1 for number in finished)]
    if run.recipe.evaluation.stages == "last" and len(numbers) > 1:
        # Without teachers the student is compared with the model before training.
        return [numbers[-1]] if taught else [0, numbers[-1]]
    return numbers


def _when(run: RunFolder, stages: int) -> str:
    return f"after {run.stages[stages - 1].name}" if stages else "before training"


def _equal(one: Any, other: Any) -> bool:
    """Whether two trees of parameters are equal to the bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other)))
