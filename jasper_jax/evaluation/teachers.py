"""The teachers' rows of an evaluation: each teacher, all concatenated, and what of them is had without training: their
vectors in fewer dimensions. Their vectors of the tests, which all processes make together, are cached on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jasper_jax.data.texts import TextStore
from jasper_jax.evaluation.evaluation import EvaluationRow
from jasper_jax.evaluation.instructions import InstructionRow, Output, instruction_rows
from jasper_jax.evaluation.shortened import principal_directions, sample, shortened
from jasper_jax.evaluation.text_tests import HELD_OUT, Texts, TextTests, after, encode_list
from jasper_jax.runtime import processes
from jasper_jax.runtime.files import read_cached_array, write_cached_array
from jasper_jax.runtime.progress import say
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.teachers.vector_import import vectors_of
from jasper_jax.teachers.vectors import concatenate


class TeacherScores(NamedTuple):
    rows: list[EvaluationRow]
    reference: np.ndarray | None
    """The concatenated teachers' vectors ``[held_out, T]`` of held-out texts, with which students are compared; None
    without teachers or held-out texts."""
    vectors: dict[tuple[str, ...], tuple[str, dict[str, np.ndarray]]]
    """Of each teacher, and of all concatenated: names of teachers -> the provider's name in ``rows``, and its vectors
    of the tests by list."""


TestVectors = dict[str, np.ndarray]
"""``[n, T]`` by list of the tests, without the held-out texts, which a teacher's store has; of a teacher with a model
also those of ``TextTests.reworded``."""


def teacher_vectors(teachers: TeacherVectors, folder: Path, tests: TextTests) -> dict[str, TestVectors | None]:
    """The vectors of the tests by teacher that a stage learns from; None of one that has no model and whose vectors of
    them were not imported. All processes make them together. ``folder``: the cache of vectors."""
    named = teachers.teachers if teachers.needed else ()
    return {teacher.name: _vectors(teacher, folder, tests, progress=teachers.progress) for teacher in named}


def teacher_rows(
    teachers: TeacherVectors,
    made: Mapping[str, TestVectors | None],
    texts: TextStore | None,
    tests: TextTests,
    dims: Sequence[int],
) -> TeacherScores:
    """The scores of the teachers with vectors in ``made``, by :func:`teacher_vectors`. ``dims``: the student's
    dimensions, to which the teachers' vectors are shortened for comparison."""
    view = None if texts is None else teachers.view(texts)
    if view is None:
        return TeacherScores([], None, {})
    assert texts is not None
    drawn = teachers.drawn(texts)
    held_out = np.arange(tests.held_out)
    reference = view.read("held_out", held_out) if tests.held_out else None
    rows: list[EvaluationRow] = []
    providers: list[_Provider] = []
    named: dict[tuple[str, ...], _Provider] = {}
    for teacher, store in zip(teachers.teachers, view.stores):
        of_tests = made[teacher.name]
        if of_tests is None:
            say(
                f"{teacher.name}: not scored, since vectors of the tests' texts were not imported; jasper texts export"
                f" writes these texts too"
            )
            continue
        held = {HELD_OUT: store.read("held_out", held_out)} if tests.held_out else {}
        vectors = {**of_tests, **held}
        no_sample = store.is_online or not len(drawn)
        sampled = None if no_sample else store.read("train", drawn[sample(len(drawn))])
        provider = _Provider(f"teacher {teacher.name}", vectors, sampled, teacher.weights)
        providers.append(provider)
        named[teacher.name,] = provider
    for provider in providers:
        rows.append(provider.row("teacher", tests, reference))
    if len(providers) == len(teachers.teachers) > 1:
        joined = _joined(providers, teachers.weights)
        rows.append(joined.row("teachers", tests, reference))
        if dims and len(set(teachers.weights)) > 1:  # what one has without choosing weights
            equal = _joined(providers, [1.0] * len(providers))._replace(name="teachers concatenated, equal weights")
            rows.append(equal.row("baseline", tests, reference))
        providers.append(joined)
        named[tuple(teacher.name for teacher in teachers.teachers)] = joined
    for provider in providers:
        rows += provider.shortened(dims, tests, reference)
    return TeacherScores(rows, reference, {names: (p.name, p.vectors) for names, p in named.items()})


class _Provider(NamedTuple):
    """A model's vectors of the tests, by list, and of a sample of the training texts (None if it has no store); cut to
    ``cut_above`` components or fewer they are another provider's."""

    name: str
    vectors: dict[str, np.ndarray]
    sampled: np.ndarray | None
    weights: int | None
    cut_above: int = 0

    @property
    def dim(self) -> int:
        return next(iter(self.vectors.values())).shape[1]

    def row(self, role: Literal["teacher", "teachers", "baseline"], tests: TextTests, reference: Any) -> EvaluationRow:
        scores = tests.score(self.vectors, reference)
        return EvaluationRow(provider=self.name, role=role, dim=self.dim, weights=self.weights, **scores)

    def shortened(self, dims: Sequence[int], tests: TextTests, reference: Any) -> Iterator[EvaluationRow]:
        directions = None if self.sampled is None else principal_directions(self.sampled)
        own = {name: x for name, x in self.vectors.items() if name in tests.lists}
        for how, dim, vectors in shortened(own, dims, directions, self.cut_above):
            scores = tests.score(vectors, reference)
            yield EvaluationRow(
                provider=f"{self.name}, {how}", role="baseline", dim=dim, weights=self.weights, **scores
            )


def _joined(providers: Sequence[_Provider], weights: Sequence[float]) -> _Provider:
    """All teachers as one, as they teach; its cost is the sum of theirs. Its first components are the first
    teacher's."""
    common = [name for name in providers[0].vectors if all(name in p.vectors for p in providers)]
    vectors = {name: concatenate([p.vectors[name] for p in providers], weights) for name in common}
    samples = [p.sampled for p in providers if p.sampled is not None]
    costs = [p.weights for p in providers if p.weights is not None]
    return _Provider(
        "teachers concatenated",
        vectors,
        concatenate(samples, weights) if len(samples) == len(providers) else None,
        sum(costs) if len(costs) == len(providers) else None,
        cut_above=providers[0].dim,
    )


def import_test_vectors(files: Sequence[Path], tests: TextTests, teacher: TeacherModel, folder: Path) -> Iterator[str]:
    """Keep the vectors of the tests' texts that ``files`` have, so that an imported teacher is scored; a line for each
    list of texts of which some have none. ``folder``: the cache of vectors."""
    lists = {name: texts for name, texts in tests.lists.items() if name != HELD_OUT}
    texts = [text for listed in lists.values() for text in listed.texts]
    kinds = [kind for listed in lists.values() for kind in listed.kinds]
    if not texts:
        return
    vectors, found = vectors_of(files, texts, kinds, teacher.spec)
    start = 0
    for name, listed in lists.items():
        rows, start = slice(start, start + len(listed.texts)), start + len(listed.texts)
        if found[rows].all():
            write_cached_array(_cache_path(teacher, folder, name, listed), vectors[rows])
        else:
            missing = f"{np.count_nonzero(~found[rows]):,} of {len(listed.texts):,}"
            yield f"{name}: {missing} texts have no vector, so {teacher.name} is not scored"


def _cache_path(
    teacher: TeacherModel, folder: Path, name: str, texts: Texts, prompts: Mapping[str, str] | None = None
) -> Path:
    """``prompts``: by kind, in place of the teacher's own."""
    spec = replace(teacher.spec, prompts={**teacher.spec.prompts, **(prompts or {})})
    content = json.dumps([spec.as_json(), *texts], sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return folder / f"{teacher.name}-{name.replace('/', '-').replace(' ', '-')}-{key}.npy"


def _vectors(teacher: TeacherModel, folder: Path, tests: TextTests, *, progress: bool) -> TestVectors | None:
    """The teacher's vectors of the tests; None if it has no model, and they were not imported."""
    encoder = teacher.encoder(processes.index()) if teacher.settings.model is not None else None
    vectors: TestVectors = {}
    for name, listed in tests.lists.items():
        if name == HELD_OUT:  # from the teacher's store
            continue
        made = _list_vectors(teacher, encoder, folder, name, listed, progress=progress)
        if made is None:
            return None
        vectors[name] = made
    for name, again in tests.reworded.items() if encoder is not None else ():
        listed = tests.lists[again.list]
        made = _list_vectors(teacher, encoder, folder, again.list, listed, again.prompts, progress=progress)
        assert made is not None
        vectors[name] = made
    return vectors


def _list_vectors(
    teacher: TeacherModel,
    encoder: Any,
    folder: Path,
    name: str,
    listed: Texts,
    prompts: Mapping[str, str] | None = None,
    *,
    progress: bool,
) -> np.ndarray | None:
    """The teacher's vectors of a list, from the cache or by ``encoder``; None without either. ``prompts``: by kind, in
    place of the teacher's own."""
    path = _cache_path(teacher, folder, name, listed, prompts)
    made = read_cached_array(path)
    lacking = made is None or len(made) != len(listed.texts)
    if processes.gather(np.array([lacking])).any():  # in any process: all take part, before the first writes
        if encoder is None:
            return None
        say(f"Embedding {len(listed.texts):,} texts of {name} with {teacher.name}{after(prompts)}")
        made = encode_list(partial(encoder, prompts=prompts, show_progress=progress), listed)
        processes.first_does(partial(write_cached_array, path, made))
    return made


def teacher_instructions(scored: TeacherScores, tests: TextTests) -> list[InstructionRow]:
    """The rows under other wordings of the teachers that have a model, and of all of them concatenated."""
    rows: list[InstructionRow] = []
    for names, (provider, vectors) in scored.vectors.items():
        if not tests.reworded.keys() <= vectors.keys():
            say(f"{provider}: not scored under other wordings, since its vectors are imported")
            continue
        fields = {
            "provider": provider,
            "role": "teacher" if len(names) == 1 else "teachers",
            "dim": next(iter(vectors.values())).shape[1],
        }
        rows += instruction_rows(tests, vectors, [Output(fields, lambda x: x)])
    return rows
