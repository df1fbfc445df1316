"""The teachers' rows of an evaluation: each teacher, and all concatenated. Their vectors are cached on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from jasper_jax.data.texts import TextStore
from jasper_jax.evaluation.report import EvaluationRow
from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
from jasper_jax.runtime.files import read_cached_array, write_cached_array
from jasper_jax.runtime.progress import say
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.teachers.vectors import concatenate


def teacher_rows(
    teachers: TeacherVectors, folder: Path, texts: TextStore | None, tests: TextTests
) -> tuple[list[EvaluationRow], np.ndarray | None]:
    """The rows of the teachers that have a model, and the concatenated teachers' vectors ``[held_out, T]`` of held-out
    texts, the reference for students; None without teachers or held-out texts. ``folder``: the cache of vectors."""
    view = None if texts is None else teachers.view(texts)
    if view is None:
        return [], None
    held_out = np.arange(tests.held_out)
    reference = view.read("held_out", held_out) if tests.held_out else None
    rows: list[EvaluationRow] = []
    vectors_of: list[dict[str, np.ndarray]] = []
    for teacher, store in zip(teachers.teachers, view.stores):
        if teacher.settings.model is None:
            say(f"{teacher.name}: imported vectors, so there is no model to score on the tests")
            continue
        vectors = _vectors(teacher, folder, tests, progress=teachers.progress)
        if tests.held_out:
            vectors[HELD_OUT] = store.read("held_out", held_out)
        vectors_of.append(vectors)
        scores = tests.score(vectors, reference)
        rows.append(EvaluationRow(provider=f"teacher {teacher.name}", role="teacher", dim=store.dim, **scores))
    if len(vectors_of) == len(teachers.teachers) > 1:
        joined = {name: concatenate([vectors[name] for vectors in vectors_of]) for name in vectors_of[0]}
        scores = tests.score(joined, reference)
        rows.append(EvaluationRow(provider="teachers concatenated", role="teachers", dim=view.dim, **scores))
    return rows, reference


def _vectors(teacher: TeacherModel, folder: Path, tests: TextTests, *, progress: bool) -> dict[str, np.ndarray]:
    spec, encoder = teacher.spec, teacher.encoder()
    vectors: dict[str, np.ndarray] = {}
    for name, (texts, kinds) in tests.lists.items():
        if name == HELD_OUT:  # from the teacher's store
            continue
        key = hashlib.sha256(json.dumps([spec.as_json(), texts, kinds], sort_keys=True).encode()).hexdigest()[:16]
        path = folder / f"{teacher.name}-{name.replace('/', '-').replace(' ', '-')}-{key}.npy"
        cached = read_cached_array(path)
        if cached is None or len(cached) != len(texts):
            say(f"Embedding {len(texts):,} texts of {name} with {teacher.name}")
            cached = encoder(texts, kinds, show_progress=progress)
            write_cached_array(path, cached)
        vectors[name] = cached
    return vectors
