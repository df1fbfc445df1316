"""The providers of vectors that are scored: each teacher, all teachers concatenated, both shortened without training,
the student before training and after each stage, and its queries among a teacher's documents.

A model encodes the texts of every test once (``text_tests``); the vectors of the student's heads and nested dimensions
are projections of its pooled vectors. Encoding and scoring are two functions: all processes encode, one scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextStore
from jasper_jax.evaluation.asymmetric import asymmetric_rows
from jasper_jax.evaluation.by_text import Provider, Vectors
from jasper_jax.evaluation.by_text import write as write_by_text
from jasper_jax.evaluation.compare_texts import compare_texts, scored_teachers
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.evaluation.image_tests import ImageTests
from jasper_jax.evaluation.instructions import InstructionRow, Output, instruction_rows
from jasper_jax.evaluation.precisions import PrecisionRow, precision_rows, refuse_impossible
from jasper_jax.evaluation.results import origin
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.evaluation.student_vectors import StudentVectors, student_vectors, when
from jasper_jax.evaluation.teachers import (
    TeacherScores,
    TestVectors,
    teacher_instructions,
    teacher_rows,
    teacher_vectors,
)
from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
from jasper_jax.recipe.load import stores_dir
from jasper_jax.recipe.stage_data import needs
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.dimensions import Provider as HeadProvider
from jasper_jax.student.dimensions import default_dimension, providers
from jasper_jax.student.heads import nested_head, project_rows
from jasper_jax.student.source import StudentSource
from jasper_jax.student.spaces import teacher_spaces
from jasper_jax.student.start import make_student, make_tokenizer
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors

ITSELF = "the model itself"
"""The provider of the vectors before training, where no teacher is learned from."""


class Embedded(NamedTuple):
    """What scoring a run needs of devices, and whose it is."""

    run: RunFolder
    teachers: TeacherVectors
    student: Student
    texts: TextStore | None
    tests: TextTests
    images: ImageTests | None
    by_teacher: dict[str, TestVectors | None]
    by_stage: list[StudentVectors]


def embed_tests(run: RunFolder, data: DataStores, teachers: TeacherVectors, source: StudentSource) -> Embedded:
    """Embed the texts and images of the tests with the teachers, and with the student before training and after each
    finished stage. All processes call it and share the work. ``source``: the student's folders, whose weights are not
    read.

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
    by_teacher = {} if texts is None else teacher_vectors(teachers, stores_dir(run.recipe) / "evaluation", tests)
    with_images = needs(run.stages, "images") and run.recipe.evaluation.images
    images = ImageTests(data.pairs(), progress=data.progress) if with_images else None
    tokenizer = make_tokenizer(student, source)
    by_stage = student_vectors(run, student, tokenizer, tests, images, taught=teachers.needed)
    return Embedded(run, teachers, student, texts, tests, images, by_teacher, by_stage)


def evaluate(embedded: Embedded, sheet: Path | None = None, by_text: Path | None = None) -> Evaluation:
    """Score the vectors; a single process does. ``sheet``: where to draw the contact sheet of a student of images.
    ``by_text``: where to write what is found of single texts, once all stages are finished."""
    run, teachers, student, texts, tests, images, by_teacher, by_stage = embedded
    dims = [dim for head in student.heads.values() for dim in head.dims] if run.recipe.evaluation.baselines else []
    taught_by = teacher_rows(teachers, by_teacher, texts, tests, dims)
    rows = taught_by.rows
    scores = StudentScores(run, student, tests, taught_by.reference, images, taught=teachers.needed)
    precisions: list[PrecisionRow] = []
    instructions = teacher_instructions(taught_by, tests) if tests.reworded else []
    for vectors in by_stage:
        rows += scores.rows(vectors)
        if vectors is by_stage[-1]:
            rows += scores.asymmetric(vectors, teachers.dims, taught_by)
            instructions += scores.instructions(vectors) if tests.reworded else []
        if vectors.stages == len(run.stages):
            if run.recipe.evaluation.precisions:
                precisions = scores.precisions(vectors)
            if by_text:
                references = scored_teachers(taught_by.vectors) or scores.itself(by_stage[0])
                write_by_text(compare_texts(scores.served(vectors), references, tests, origin(run)), by_text)
    if images and sheet:
        images.draw(sheet)
    metadata = {"recipe": run.recipe.name, "held_out_texts": tests.held_out, "environment": environment()}
    metadata |= origin(run)
    return Evaluation(rows=rows, precisions=precisions, instructions=instructions, metadata=metadata)


class StudentScores:
    """The student's rows. To be called in ascending order of stages."""

    def __init__(
        self,
        run: RunFolder,
        student: Student,
        tests: TextTests,
        reference: np.ndarray | None,
        images: ImageTests | None,
        *,
        taught: bool,
    ):
        """``reference``: the vectors with which those of held-out texts are compared. ``taught``: whether teachers'
        vectors are learned."""
        self.run, self.student, self.tests, self.reference = run, student, tests, reference
        self.images, self.taught = images, taught

    def rows(self, vectors: StudentVectors) -> list[EvaluationRow]:
        """The rows after ``vectors.stages`` stages; after 0, also of its pooled vectors."""
        stages, pictures = vectors.stages, vectors.images
        rows = [] if stages else [self._pooled_row(vectors.pooled)]
        provider = when(self.run, stages) if stages else "closed-form start"
        for head in self._heads(stages, pictures is not None):
            params = vectors.heads[head]
            projected = {name: project_rows(params, pooled) for name, pooled in vectors.pooled.items()}
            for dim in self.student.heads[head].dims:
                scores = self.tests.score({name: truncate(x, dim) for name, x in projected.items()}, self.reference)
                if self.images is None or pictures is None:
                    scores["images"] = {}
                else:
                    scores["images"] = self.images.score(nested_head(params, dim), pictures)
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
        self, vectors: StudentVectors, dims: Mapping[str, int], teachers: TeacherScores
    ) -> list[EvaluationRow]:
        """The rows of its queries among the teachers' documents. ``dims``: the teachers' dimensions."""
        stages = vectors.stages
        spaces = teacher_spaces(self.run.recipe, self._heads(stages, False), dims) if stages else []
        if not spaces:
            return []
        head = spaces[0].head
        projected = {name: project_rows(vectors.heads[head], pooled) for name, pooled in vectors.pooled.items()}
        weights = self.student.encoder.weights_per_token
        return list(
            asymmetric_rows(projected, spaces, teachers.vectors, self.tests, weights=weights, head=head, stage=stages)
        )

    def instructions(self, vectors: StudentVectors) -> list[InstructionRow]:
        """The rows under other wordings of the prompts, of the last finished stage."""
        provider = when(self.run, vectors.stages) if vectors.stages else "closed-form start"
        outputs = [
            Output(
                {"provider": provider, "role": "student", "dim": dim, "head": head},
                partial(_nested, vectors.heads[head], dim),
            )
            for head in self._heads(vectors.stages, False)
            for dim in self.student.heads[head].dims
        ]
        return instruction_rows(self.tests, {**vectors.pooled, **vectors.reworded}, outputs)

    def precisions(self, vectors: StudentVectors) -> list[PrecisionRow]:
        """The rows in fewer bits, at each exported dimension, of the final student."""
        rows: list[PrecisionRow] = []
        for dim, head in self._served().items():
            rows += precision_rows(dim, _projected(vectors, head, dim), self.tests)
        return rows

    def served(self, vectors: StudentVectors) -> list[Vectors]:
        """Those of the final student at its default dimension and the shortest."""
        served, name = self._served(), when(self.run, len(self.run.stages))
        default = default_dimension(served, self.run.recipe.export.dim)
        return [
            Vectors(Provider(name=name, dim=dim, role="student"), _projected(vectors, served[dim], dim))
            for dim in dict.fromkeys((default, min(served)))
        ]

    def itself(self, before: StudentVectors) -> list[Vectors]:
        """The model before training, where it takes the place of teachers."""
        if self.taught or before.stages or not before.pooled:
            return []
        return [Vectors(Provider(name=ITSELF, dim=self.student.width, role="teacher"), before.pooled)]

    def _served(self) -> dict[int, HeadProvider]:
        heads = {name: self.student.heads[name] for name in self._heads(len(self.run.stages), False)}
        return providers(heads, self.run.recipe.export.dims)

    def _pooled_row(self, pooled: Mapping[str, np.ndarray]) -> EvaluationRow:
        """The model before training. Without teachers, its vectors are the reference for the trained student."""
        if self.reference is None:
            self.reference = pooled.get(HELD_OUT)
        return EvaluationRow(
            provider="student before training" if self.taught else ITSELF,
            role="student" if self.taught else "teacher",
            dim=self.student.width,
            weights=self.student.encoder.weights_per_token,
            head="pooled",
            stage=0 if self.taught else None,
            **self.tests.score(pooled, self.reference),
        )

    def _heads(self, stages: int, with_images: bool) -> Sequence[str]:
        """The heads that are trained or solved; without any, those of a next stage that learns from images."""
        done, rest = self.run.stages[:stages], self.run.stages[stages:]
        if done:
            heads = [head for head in self.student.heads if any(head in stage.heads for stage in done)]
        else:
            heads = [head for head in rest[0].heads if self.run.recipe.heads[head].init == "ridge"]
        return heads or (list(rest[0].heads) if with_images and rest and rest[0].learns_from("images") else [])


def _projected(vectors: StudentVectors, head: HeadProvider, dim: int) -> dict[str, np.ndarray]:
    nested = nested_head(vectors.heads[head.head], dim)
    return {name: project_rows(nested, pooled) for name, pooled in vectors.pooled.items()}


def _nested(head: Mapping[str, Any], dim: int, pooled: np.ndarray) -> np.ndarray:
    """A head's first ``dim`` components of pooled vectors, normalised."""
    return truncate(project_rows(head, pooled), dim)
