"""A kind of stage: the few things in which stages differ. Loop, step, planning and mesh know nothing else of it.

A new kind is a file with a subclass of :class:`StageKind`, and a row of ``KINDS`` and a preset in
``jasper_jax.recipe.stages``.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh

from jasper_jax.batches.draws import BatchDraws
from jasper_jax.batches.loading import StageBatches
from jasper_jax.data.draw_order import stage_seed
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.packing import RowDivision
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.losses import HeadLoss, distillation_losses, reduce_heads
from jasper_jax.losses.per_head import named_terms
from jasper_jax.parameters.sharding import row_shards
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student
from jasper_jax.teachers.negatives import Negatives
from jasper_jax.teachers.vectors import TeacherView
from jasper_jax.training.teaching import Teaching

Params = dict[str, Any]
BatchArrays = Mapping[str, Any]
"""A batch as the step takes it."""
Scalars = dict[str, jax.Array]
LossFunction = Callable[
    [Mapping[str, Any], Mapping[str, Any], BatchArrays, jax.Array | None], tuple[jax.Array, Scalars]
]
"""``(params, online teachers' params, batch, dropout key or None) -> (scalar, {"head/term": scalar})``."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What stages make their batches and starts from.

    ``tokenizer``: the student's, at its full length. ``folder``: the run's, where token counts and caption vectors are
    kept. ``texts`` and ``pairs`` are None where no stage learns from them, ``teachers`` where none teaches,
    ``negatives`` where none are mined.
    """

    mesh: Mesh
    tokenizer: Tokenizer
    folder: Path
    texts: TextStore | None = None
    pairs: PairStore | None = None
    teachers: TeacherView | None = None
    negatives: Negatives | None = None
    progress: bool = True


class StageKind(abc.ABC):
    """One stage of a recipe with the student that it trains. ``stage.kind`` is the row of ``KINDS`` that names the
    subclass."""

    parts: ClassVar[tuple[str, ...]] = ("encoder",)
    """The groups of parameters that it uses besides its heads and its loss terms' learned numbers."""
    replicated: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays of a batch that every device holds whole: they are small and not divided by rows."""

    def __init__(self, recipe: Recipe, stage: ResolvedStage, student: Student):
        self.recipe, self.stage, self.student = recipe, stage, student

    @abc.abstractmethod
    def batches(self, inputs: Inputs, params: Params) -> StageBatches:
        """The stage's batches; ``params`` are the canonical ones that it begins with, on the mesh."""

    @abc.abstractmethod
    def head_losses(self, teaching: Teaching) -> dict[str, HeadLoss]:
        """Which terms each head takes, with their weights."""

    @abc.abstractmethod
    def vectors(
        self, params: Mapping[str, Any], teachers: Mapping[str, Any], batch: BatchArrays, key: Any, teaching: Teaching
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """``(students, targets)`` of a batch, by the heads of :meth:`head_losses`: ``[B, E]`` and ``[B, T]``."""

    @abc.abstractmethod
    def abstract_batch(self, rows: int, shards: int, teaching: Teaching) -> tuple[dict[str, Any], int]:
        """The shapes of the largest batch, of ``rows`` rows in ``shards`` parts, and the number of tokens in a row."""

    def new_parts(self, before: Sequence[ResolvedStage]) -> list[str]:
        """The parameters (``heads/fc2``) that :meth:`begin` initializes: no stage ``before`` has trained them."""
        return []

    def begin(self, inputs: Inputs, params: Params, before: Sequence[ResolvedStage]) -> Params:
        """``params``, on the mesh, with :meth:`new_parts` initialized."""
        return params

    def loss(self, teaching: Teaching) -> LossFunction:
        """The pure loss of a batch."""
        spec = self.head_losses(teaching)

        def loss(
            params: Mapping[str, Any], teachers: Mapping[str, Any], batch: BatchArrays, key: jax.Array | None
        ) -> tuple[jax.Array, Scalars]:
            students, targets = self.vectors(params, teachers, batch, key, teaching)
            terms = distillation_losses(students, targets, spec, batch=batch, learned=params.get("losses"))
            return reduce_heads(terms, self.stage.reduce_heads), named_terms(terms)

        return loss

    def active(self, params: Mapping[str, Any]) -> Params:
        """The parameters that the stage sees, trained or frozen."""
        seen = {name: params[name] for name in self.parts if name in params}
        seen["heads"] = {head: params["heads"][head] for head in self.stage.heads}
        if learned := self.stage.learned_terms:
            seen["losses"] = {term: params["losses"][term] for term in learned}
        return seen

    @property
    def at_once(self) -> int | None:
        """The most rows that the encoders take at once (``training.micro_batch``); a row holds at least one text."""
        return self.recipe.training.micro_batch

    def row_division(self, mesh: Mesh) -> RowDivision:
        """How the rows of every batch are divided over the devices, and into micro-batches."""
        return RowDivision(row_shards(mesh), self.at_once)

    def draws(self, rows: str, size: int, held_out: int) -> BatchDraws:
        """Batches that are drawn from ``size`` items at random; see ``batches.draws``."""
        return BatchDraws(rows, size, held_out, batch_size=self.stage.batch_size, seed=self.seed)

    @property
    def seed(self) -> int:
        """The seed of the stage's data order."""
        return stage_seed(self.recipe.seed, self.stage.index)


def make_kind(recipe: Recipe, stage: ResolvedStage, student: Student) -> StageKind:
    """``stage`` as an object of the class that its kind names."""
    module, name = stage.kind.implementation.split(":")
    return getattr(importlib.import_module(module), name)(recipe, stage, student)
