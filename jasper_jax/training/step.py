"""The train step: one pure function ``(trained, optimizer state, frozen, teachers, batch, step) -> (.., metrics)``.

It runs under ``jax.jit`` on the global batch. The gradient is taken with respect to the trained leaves alone; the
frozen ones, and the parameters of teachers that run in the step, are arguments like the batch. Texts arrive packed into
rows (``jasper_jax.encoders.packing``), the losses see the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jasper_jax.losses import HeadLoss, distillation_losses, reduce_heads
from jasper_jax.parameters.sharding import WIDE, constrain, shardings
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.start import cosine_applies
from jasper_jax.student.student import Student
from jasper_jax.teachers.online import OnlineTeacher, join
from jasper_jax.teachers.vectors import TeacherView
from jasper_jax.training.image_loss import make_image_loss
from jasper_jax.training.mesh import abstract_state
from jasper_jax.training.optimizer import learning_rate, make_optimizer
from jasper_jax.training.partition import Flat, Partition
from jasper_jax.vision.sight import CONTRASTIVE, PARTS

Batch = Mapping[str, Any]
"""``encoders.packed.Packed``, and ``teachers``: ``[B, T]`` float32, absent when no head needs it. Where teachers run
in the step, in its place ``cached``: {teacher: ``[B, T_i]``} and ``online``: {teacher: ``Packed``, its own tokens}.
Of a stage on images: ``jasper_jax.training.image_loss``."""
Metrics = dict[str, jax.Array]


def head_losses(recipe: Recipe, stage: ResolvedStage, student: Student, teacher_dim: int | None) -> dict[str, HeadLoss]:
    """Which terms each head of the stage takes, with their weights."""
    weights = stage.losses
    spec: dict[str, HeadLoss] = {}
    for name in stage.heads:
        dims = student.heads[name].dims
        spec[name] = HeadLoss(
            cosine=weights.cosine if cosine_applies(recipe, name, teacher_dim) else 0.0,
            similarity=weights.similarity,
            relative=weights.relative,
            margin=weights.margin,
            nested=dims if len(dims) > 1 else (),
        )
    return spec


@dataclasses.dataclass(frozen=True)
class Teaching:
    """The teachers as the step sees them: ``names`` in the order in which vectors are joined, those that run in it."""

    dim: int | None
    names: tuple[str, ...] = ()
    online: Mapping[str, OnlineTeacher] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, view: TeacherView | None) -> Teaching:
        if view is None:
            return cls(None)
        return cls(view.dim, tuple(view.names), {one.name: one.teacher for one in view.online})

    def vectors(self, params: Params, batch: Batch, pieces: int = 1) -> jax.Array | None:
        """``[B, T]`` float32 of norm 1: the target of heads that the teachers teach; None where no head needs it.

        Their texts come divided over the devices; their dimensions leave it so, like those of the heads."""
        if "online" not in batch:
            stored = batch.get("teachers")
            return None if stored is None else constrain(stored, None, WIDE)
        return join(
            [
                constrain(self.online[name].vectors(params[name], batch["online"][name], pieces=pieces), None, WIDE)
                if name in self.online
                else constrain(batch["cached"][name], None, WIDE)
                for name in self.names
            ]
        )


Params = Mapping[str, Any]
"""Teacher -> parameters of one that runs in the step."""


def make_loss(
    recipe: Recipe, stage: ResolvedStage, student: Student, teaching: Teaching
) -> Callable[[Mapping[str, Any], Params, Batch, jax.Array | None], tuple[jax.Array, Metrics]]:
    """The loss of a stage: ``(params, online teachers' params, batch, dropout key or None) -> (scalar, {"head/term":
    scalar})``."""
    spec = head_losses(recipe, stage, student, teaching.dim)
    pieces = pieces_of(recipe, stage)

    def loss(
        params: Mapping[str, Any], teachers: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        pooled = student.pooled(params, batch, key, pieces=pieces)
        vectors = student.project(params, pooled, stage.heads)
        # No gradient flows to a target; heads with the same target object share its similarities and their order.
        taught = teaching.vectors(teachers, batch, pieces)
        sources = {"pooled": pooled, **vectors, **({} if taught is None else {"teachers": taught})}
        targets = {name: sources[recipe.heads[name].target] for name in stage.heads}
        terms = distillation_losses(vectors, targets, spec)
        return reduce_heads(terms, stage.reduce_heads), {
            f"{name}/{term}": v for name, t in terms.items() for term, v in t.items()
        }

    return loss


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """The functions of a stage, all pure; ``step`` and ``evaluate`` are compiled once per number of rows."""

    partition: Partition
    optimizer: optax.GradientTransformation
    step: Callable[[Flat, Any, Flat, Params, Batch, jax.Array], tuple[Flat, Any, Metrics]]
    evaluate: Callable[[Flat, Flat, Params, Batch], Metrics]


def make_program(
    recipe: Recipe,
    stage: ResolvedStage,
    student: Student,
    partition: Partition,
    teaching: Teaching,
    mesh: Mesh | None = None,
) -> StageProgram:
    """The train step and the evaluation of a stage, jitted; on a ``mesh`` they are to be lowered within
    ``jax.set_mesh``, with arguments that lie as ``jasper_jax.training.mesh`` lays them."""
    if stage.images:
        loss = make_image_loss(recipe, stage, student, pieces_of(recipe, stage))
    else:
        loss = make_loss(recipe, stage, student, teaching)
    optimizer = make_optimizer(stage.settings)
    rate = learning_rate(stage.settings)
    drops = bool(student.dropout or student.vector_dropout)
    seed = jax.random.key(recipe.seed)

    def step(
        trained: Flat, opt_state: Any, frozen: Flat, teachers: Params, batch: Batch, number: jax.Array
    ) -> tuple[Flat, Any, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(seed, 1000 + stage.index), number) if drops else None

        def objective(part: Flat) -> tuple[jax.Array, Metrics]:
            return loss(partition.merge(part, frozen), teachers, batch, key)

        (value, terms), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        metrics = {"loss": value, "grad_norm": norm, "learning_rate": jnp.asarray(rate(number), jnp.float32)}
        moved: Any = optax.apply_updates(trained, updates)
        return moved, opt_state, {**metrics, **terms}

    def evaluate(trained: Flat, frozen: Flat, teachers: Params, batch: Batch) -> Metrics:
        value, terms = loss(partition.merge(trained, frozen), teachers, batch, None)
        return {"loss": value, **terms}

    if mesh is None:
        return StageProgram(partition, optimizer, jax.jit(step, donate_argnums=(0, 1)), jax.jit(evaluate))
    whole = NamedSharding(mesh, PartitionSpec())
    trained, _ = jax.eval_shape(partition.split, active_params(stage, student.shapes()))
    placed = shardings(trained, mesh)
    state = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, trained, mesh))
    return StageProgram(
        partition,
        optimizer,
        step=jax.jit(step, donate_argnums=(0, 1), out_shardings=(placed, state, whole)),
        evaluate=jax.jit(evaluate, out_shardings=whole),
    )


def pieces_of(recipe: Recipe, stage: ResolvedStage) -> int:
    """Into how many pieces the encoders take the stage's batch (``training.micro_batch``)."""
    return -(-stage.batch_size // recipe.training.micro_batch) if recipe.training.micro_batch else 1


def active_params(stage: ResolvedStage, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a stage sees: the encoder's and its own heads', and what sees where it learns from images."""
    heads = {head: params["heads"][head] for head in stage.heads}
    if not stage.images:
        return {"encoder": params["encoder"], "heads": heads}
    return {**{name: params[name] for name in ("encoder", *PARTS, CONTRASTIVE) if name in params}, "heads": heads}
