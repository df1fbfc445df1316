"""Who is scored: each teacher, the teachers concatenated, and the student before training and after each stage.

Every test becomes lists of texts; a model encodes them once (a teacher's vectors are kept on disk, its models are
the dear ones), and each head and nested dimension is a projection of the student's pooled vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextStore
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.evaluation.contact_sheet import contact_sheet
from jasper_jax.evaluation.images import ImageScore, score_images
from jasper_jax.evaluation.report import Evaluation, EvaluationRow
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.similarity import score_similarity, truncate
from jasper_jax.recipe.config import Evaluation as EvaluationSettings
from jasper_jax.recipe.load import stores_dir
from jasper_jax.recipe.stages import needs
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import read_cached_array, write_cached_array
from jasper_jax.runtime.progress import say
from jasper_jax.student.source import StudentSource
from jasper_jax.student.start import make_student, make_tokenizer, student_embedder
from jasper_jax.student.student import Student
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.teachers.vectors import concatenate

AGREEMENT_TEXTS = 2000
"""At most so many held-out texts are compared for agreement."""


class Texts(NamedTuple):
    """A list of texts of one test, with the kind of each."""

    texts: list[str]
    kinds: list[str]


class Tests:
    """The tests of a recipe as lists of texts, and how vectors of those lists are scored."""

    def __init__(self, settings: EvaluationSettings, texts: TextStore | None):
        from jasper_jax.assets.corpora import lee_similarities, read_beir, retrieval_test, subset

        self.lists: dict[str, Texts] = {}
        self.retrieval: dict[str, Any] = {}
        for spec in settings.retrieval:
            test = retrieval_test(spec.asset, spec.split) if spec.asset else read_beir(spec.beir or "")
            test = subset(test, spec.passages, spec.queries_per_passage)
            self.retrieval[spec.name] = test
            queries, passages = list(test.queries.values()), list(test.passages.values())
            self.lists[f"{spec.name}/queries"] = Texts(queries, ["query"] * len(queries))
            self.lists[f"{spec.name}/passages"] = Texts(passages, ["passage"] * len(passages))
        self.human: dict[str, np.ndarray] = {}
        for name in settings.similarity:
            documents, self.human[name] = lee_similarities()
            self.lists[name] = Texts(documents, ["passage"] * len(documents))
        self.held_out = 0
        if settings.agreement and texts is not None:
            self.held_out = min(texts.size("held_out"), AGREEMENT_TEXTS)
        if self.held_out and texts is not None:
            rows = texts.read("held_out", range(self.held_out))
            self.lists["held_out"] = Texts([r.text for r in rows], [r.kind for r in rows])

    def score(self, vectors: Mapping[str, np.ndarray], reference: np.ndarray | None) -> dict[str, Any]:
        """The scores of one provider; ``reference`` is what held-out texts are compared with."""
        scores: dict[str, Any] = {
            "retrieval": {
                name: score_retrieval(vectors[f"{name}/queries"], vectors[f"{name}/passages"], test)
                for name, test in self.retrieval.items()
            },
            "similarity": {name: score_similarity(vectors[name], human) for name, human in self.human.items()},
        }
        if reference is not None and "held_out" in vectors:
            scores["agreement"] = score_agreement(vectors["held_out"], reference)
        return scores


def evaluate(
    run: RunFolder, data: DataStores, teachers: TeacherVectors, source: StudentSource, sheet: Path | None = None
) -> Evaluation:
    """Score everything that is there: the teachers, and the student as far as it has been trained; with ``sheet``, draw
    there what it sees, where it does. ``source``: where the student began; its weights are not read.

    Raises:
      UserError: nothing was trained yet, or the recipe names a test that does not exist.
    """
    checkpoints = run.checkpoints()
    if not checkpoints.has(checkpoints.start()):
        raise UserError(f"{run.path}: nothing is trained yet; run jasper train first")
    texts = None if run.recipe.texts is None else TextStore.open(data.text_folder)
    tests = Tests(run.recipe.evaluation, texts)
    rows, reference = _teacher_rows(teachers, stores_dir(run.recipe) / "evaluation", texts, tests)

    from jasper_jax.checkpoints.checkpoint import abstract

    student = make_student(run.recipe, teachers.dim, source)
    tokenizer = make_tokenizer(student, source)
    shapes = abstract(student.shapes())
    finished = takewhile(lambda number: checkpoints.has(checkpoints.final(number)), range(len(run.stages)))
    numbers = [0, *(number + 1 for number in finished)]
    if run.recipe.evaluation.stages == "last" and len(numbers) > 1:
        # Without teachers the model before training is what the student is compared with.
        numbers = [numbers[-1]] if teachers.needed else [0, numbers[-1]]
    pooled: dict[str, np.ndarray] = {}
    looking = needs(run.stages, "images") and run.recipe.evaluation.images
    seeing = ImageTests(data.pairs(), progress=data.progress) if looking else None
    encoded: Any = None  # the encoder that ``pooled`` comes from
    for number in numbers:
        path = checkpoints.final(number - 1) if number else checkpoints.start()
        say(f"Evaluating the student {'before training' if not number else f'after {run.stages[number - 1].name}'}")
        params = checkpoints.load(path, shapes)
        if encoded is None or not _equal(encoded, params["encoder"]):  # stage 1 leaves the encoder as it was
            embedder, encoded = student_embedder(student, params, tokenizer), params["encoder"]
            pooled = {name: embedder.pooled(t.texts, t.kinds) for name, t in tests.lists.items()}
        provider = "student before training" if not number else f"after {run.stages[number - 1].name}"
        if not number:
            if reference is None and "held_out" in pooled:
                reference = pooled["held_out"]  # no teachers: the student's own vectors are what is to be kept
            role = "teacher" if not teachers.needed else "student"
            name = provider if teachers.needed else "the model itself"
            rows.append(
                EvaluationRow(
                    provider=name,
                    role=role,
                    dim=student.encoder.hidden_size,
                    head="pooled",
                    stage=None if role == "teacher" else 0,
                    **tests.score(pooled, reference),
                )
            )
            heads = [h for h in run.stages[0].heads if run.recipe.heads[h].init == "ridge"]
            provider = "closed-form start"
        else:
            heads = [h for h in student.heads if any(h in stage.heads for stage in run.stages[:number])]
        looks = seeing if _sees_by(run, number) else None
        if looks:
            looks.encode(student_embedder(student, params, tokenizer))
            if number < len(run.stages) and run.stages[number].learns_from("images"):  # as the stage on images finds it
                heads = heads or list(run.stages[number].heads)
        rows += _head_rows(provider, number, student, params, heads, pooled, tests, reference, looks)
    if seeing and sheet:
        seeing.draw(sheet)
    return Evaluation(
        rows=rows,
        metadata={
            "recipe": run.recipe.name,
            "held_out_texts": tests.held_out,
            "environment": environment(),
        },
    )


def _equal(one: Any, other: Any) -> bool:
    """Whether two trees of parameters are the same to the bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), one, other)))


def _teacher_rows(
    teachers: TeacherVectors, kept: Path, texts: TextStore | None, tests: Tests
) -> tuple[list[EvaluationRow], np.ndarray | None]:
    view = None if texts is None else teachers.view(texts)
    if view is None:
        return [], None
    reference = view.read("held_out", np.arange(tests.held_out)) if tests.held_out else None
    rows: list[EvaluationRow] = []
    everything: list[dict[str, np.ndarray]] = []
    for teacher, store in zip(teachers.teachers, view.stores):
        if teacher.settings.model is None:
            say(f"{teacher.name}: imported vectors, the model is not here to be scored on the tests")
            continue
        vectors = _teacher_vectors(teacher, kept, tests, progress=teachers.progress)
        if tests.held_out:
            vectors["held_out"] = store.read("held_out", np.arange(tests.held_out))
        everything.append(vectors)
        dim = next(iter(vectors.values())).shape[1] if vectors else store.dim
        rows.append(
            EvaluationRow(
                provider=f"teacher {teacher.name}", role="teacher", dim=dim, **tests.score(vectors, reference)
            )
        )
    if len(everything) == len(teachers.teachers) > 1:
        joined = {name: concatenate([v[name] for v in everything]) for name in everything[0]}
        rows.append(
            EvaluationRow(
                provider="teachers concatenated", role="teachers", dim=view.dim, **tests.score(joined, reference)
            )
        )
    return rows, reference


def _teacher_vectors(teacher: TeacherModel, folder: Path, tests: Tests, *, progress: bool) -> dict[str, np.ndarray]:
    """The teacher's vectors of the tests' texts, from ``folder`` where they are kept."""
    embedder: Embedder | None = None
    vectors: dict[str, np.ndarray] = {}
    for name, (texts, kinds) in tests.lists.items():
        if name == "held_out":
            continue
        said = json.dumps([teacher.spec.as_json(), texts, kinds], sort_keys=True)
        key = hashlib.sha256(said.encode()).hexdigest()[:16]
        path = folder / f"{teacher.name}-{name.replace('/', '-')}-{key}.npy"
        kept = read_cached_array(path)
        if kept is not None and len(kept) == len(texts):
            vectors[name] = kept
            continue
        embedder = embedder or teacher.load()
        say(f"Embedding {len(texts):,} texts of {name} with {teacher.name}")
        vectors[name] = embedder.encode(texts, kind=kinds, show_progress=progress)
        write_cached_array(path, vectors[name])
    return vectors


def _head_rows(
    provider: str,
    number: int,
    student: Student,
    params: Mapping[str, Any],
    heads: list[str],
    pooled: Mapping[str, np.ndarray],
    tests: Tests,
    reference: np.ndarray | None,
    seeing: ImageTests | None = None,
) -> list[EvaluationRow]:
    rows: list[EvaluationRow] = []
    for head in heads:
        kernel = np.asarray(params["heads"][head]["kernel"])
        bias = np.asarray(params["heads"][head].get("bias", np.zeros(kernel.shape[1], np.float32)))
        full = {name: vectors @ kernel + bias for name, vectors in pooled.items()}
        for dim in student.heads[head].dims:
            cut = {name: truncate(vectors, dim) for name, vectors in full.items()}
            rows.append(
                EvaluationRow(
                    provider=provider,
                    role="student",
                    dim=dim,
                    head=head,
                    stage=number,
                    **tests.score(cut, reference),
                    images=seeing.score(kernel[:, :dim], bias[:dim]) if seeing else {},
                )
            )
    return rows


def _sees_by(run: RunFolder, number: int) -> bool:
    """Whether the student after ``number`` stages is one that a stage on images begins with or has taught."""
    return needs(run.stages[: number + 1], "images")


class ImageTests:
    """The pairs that were not trained on, and their vectors under the student as it stands."""

    def __init__(self, pairs: PairStore, *, progress: bool):
        self.pairs, self._progress = pairs, progress
        self.pooled: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {}
        self.largest = np.zeros((0, 0)), np.zeros(0)

    def encode(self, embedder: Embedder) -> None:
        """Pooled vectors of images and captions with this student."""
        self.pooled = {}
        for split in ("test", "held_out"):
            if size := self.pairs.size(split):
                rows = self.pairs.read(split, range(size))
                texts = [row.caption for row in rows]
                images = embedder.pooled([row.image for row in rows], show_progress=self._progress)
                self.pooled[split] = images, embedder.pooled(texts, "passage"), texts

    def draw(self, path: Path) -> None:
        """The contact sheet, by the last student that was encoded and scored, at its largest dimension."""
        if (split := next((s for s in ("test", "held_out") if s in self.pooled), None)) is None:
            return
        images, captions, _ = self.pooled[split]
        kernel, bias = self.largest
        rows = self.pairs.read(split, range(self.pairs.size(split)))
        title = f"{len(rows)} pictures that were not trained on, {kernel.shape[1]} dimensions; green: the right one"
        contact_sheet(images @ kernel + bias, captions @ kernel + bias, rows, path, title=title)

    def score(self, kernel: np.ndarray, bias: np.ndarray) -> dict[str, ImageScore]:
        """The scores of one head, by split."""
        if kernel.shape[1] >= self.largest[0].shape[1]:
            self.largest = kernel, bias
        return {
            split: score_images(images @ kernel + bias, captions @ kernel + bias, texts)
            for split, (images, captions, texts) in self.pooled.items()
        }
