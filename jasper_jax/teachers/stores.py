"""The teachers' vectors of a recipe's texts: a store for each teacher, and all of them as one view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jasper_jax.data.drawn import drawn_records
from jasper_jax.data.texts import TextStore
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import stores_dir
from jasper_jax.recipe.stage_data import mines, uses_teachers
from jasper_jax.runtime import processes
from jasper_jax.teachers.cluster_embedding import TeacherStore, embed_on_cluster
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.mining import mine
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.needed import needed_draws
from jasper_jax.teachers.negatives import Negatives, NegativeStore
from jasper_jax.teachers.online import OnlineVectors
from jasper_jax.teachers.scheduling import Cluster
from jasper_jax.teachers.teacher_worker import Order
from jasper_jax.teachers.vectors import TeacherView, VectorStore

T = TypeVar("T")


class TeacherVectors:
    """The vectors of the recipe's ``teachers``, in its order. ``needed``: whether a stage learns from them."""

    def __init__(self, recipe: Recipe, teachers: Sequence[TeacherModel], *, progress: bool = True):
        self.teachers, self.progress, self._recipe = tuple(teachers), progress, recipe
        self.needed = uses_teachers(recipe)
        self._folder = stores_dir(recipe) / "vectors"

    @property
    def dim(self) -> int | None:
        """Dimension of the concatenated teachers; None where no stage learns from them."""
        return sum(self.dims.values()) if self.needed else None

    @property
    def dims(self) -> dict[str, int]:
        """The dimension of each teacher, by name; empty where no stage learns from them."""
        return {teacher.name: teacher.dim for teacher in self.teachers} if self.needed else {}

    @property
    def weights(self) -> list[float]:
        """Of each teacher in the concatenated vectors."""
        return [teacher.settings.weight for teacher in self.teachers]

    def folder(self, teacher: TeacherModel) -> Path:
        """Folder of the teacher's store."""
        return self._folder / teacher.name

    def embed(
        self, teacher: TeacherModel, texts: TextStore, *, process_index: int = 0, process_count: int = 1
    ) -> VectorStore | None:
        """Fill this process's share of the teacher's store; None while shards of other processes are missing.

        Processes of one JAX cluster divide the work by their own indices, and all of them return the complete store.
        """
        index, count = _own_share(process_index, process_count)
        encoder = teacher.encoder(index)
        draws = needed_draws(self._recipe, texts.size("train"))

        def fill() -> VectorStore | None:
            return embed_teacher(
                self.folder(teacher),
                texts,
                teacher.spec,  # reads all weights, so a request to stop may come meanwhile
                encoder,
                process_index=index,
                process_count=count,
                progress=self.progress,
                draws=draws,
            )

        return _by_all(fill)

    def embed_on(
        self,
        cluster_for: Callable[[Sequence[Order]], Cluster],
        teachers: Sequence[TeacherModel],
        texts: TextStore,
    ) -> None:
        """Fill the stores of ``teachers`` on a cluster; all are complete on return."""
        stores = [TeacherStore(teacher, self.folder(teacher)) for teacher in teachers]
        draws = needed_draws(self._recipe, texts.size("train"))
        embed_on_cluster(stores, texts, draws, cluster_for, progress=self.progress)

    def open(self, teacher: TeacherModel, texts: TextStore) -> VectorStore:
        """The teacher's complete store, checked against the texts and the recipe, with the vectors that it needs."""
        store = VectorStore.open(self.folder(teacher), texts, teacher.spec)
        store.refuse_lacking(needed_draws(self._recipe, texts.size("train")))
        return store

    def drawn(self, texts: TextStore) -> np.ndarray:
        """The training texts that the stages draw, so that every teacher has their vectors; ascending."""
        size = texts.size("train")
        draws = needed_draws(self._recipe, size)
        return np.arange(size) if draws is None else np.flatnonzero(drawn_records(draws, size))

    def mine(self, texts: TextStore, *, process_index: int = 0, process_count: int = 1) -> Negatives | None:
        """Fill this process's share of the negatives of the pairs; None while shards of other processes are missing."""
        view = self.view(texts)
        assert view is not None
        index, count = _own_share(process_index, process_count)

        def fill() -> Negatives | None:
            return mine(
                self._negatives(texts),
                texts,
                view,
                self._recipe.mining,
                process_index=index,
                process_count=count,
                progress=self.progress,
            )

        return _by_all(fill)

    def negatives(self, texts: TextStore) -> Negatives | None:
        """The complete negatives; None where no stage needs them. UserError: they are not mined, or of other pairs."""
        return self._negatives(texts).open() if mines(self._recipe) else None

    def _negatives(self, texts: TextStore) -> NegativeStore:
        settings = self._recipe.mining
        teachers = [teacher.spec.as_json() for teacher in self.teachers]
        spec = {"pairs": texts.pair_fingerprint, "teachers": teachers, "mining": settings.model_dump(mode="json")}
        if len(set(self.weights)) > 1:
            spec["weights"] = self.weights
        sizes = {split: len(table) for split, table in texts.pairs.items()}
        return NegativeStore(self._folder.parent / "negatives", spec, sizes, settings.depth)

    def view(self, texts: TextStore) -> TeacherView | None:
        """All teachers as one (paper section 2.1), None where no stage learns from them."""
        if not self.needed:
            return None
        return TeacherView(
            [
                OnlineVectors(teacher.name, teacher.load(), texts)
                if teacher.settings.mode == "online"
                else self.open(teacher, texts)
                for teacher in self.teachers
            ],
            self.weights,
        )


def _own_share(process_index: int, process_count: int) -> tuple[int, int]:
    """Index and number of the processes that share the work: those of the JAX cluster if there is one, or as given."""
    return (processes.index(), processes.count()) if processes.count() > 1 else (process_index, process_count)


def _by_all(fill: Callable[[], T]) -> T:
    """``fill`` of the processes of a JAX cluster: each does its share, then, with all shards there, takes the whole."""
    if processes.count() > 1:
        processes.all_do(fill)
    return processes.all_do(fill)
