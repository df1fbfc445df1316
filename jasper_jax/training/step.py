"""The train step: one pure function ``(trained, optimizer state, frozen, teachers, batch, step) -> (.., metrics)``.

It runs under ``jax.jit`` on the global batch. The gradient is taken with respect to the trained leaves alone; the
frozen ones, and the parameters of teachers that run in the step, are arguments like the batch. Texts arrive packed into
rows (``jasper_jax.data.packing``), the losses see the whole batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jasper_jax.config import Recipe
from jasper_jax.data.vectors import TeacherView
from jasper_jax.losses import HeadLoss, distillation_losses, reduce_heads
from jasper_jax.online import OnlineTeacher, join
from jasper_jax.stages import ResolvedStage
from jasper_jax.student import Student, cosine_applies
from jasper_jax.training.optimizer import learning_rate, make_optimizer
from jasper_jax.training.partition import Flat, Partition

Batch = Mapping[str, Any]
"""``jasper_jax.student.Packed``, and ``teachers``: ``[B, T]`` float32, absent when no head needs it. Where teachers run
in the step, in its place ``cached``: {teacher: ``[B, T_i]``} and ``online``: {teacher: ``Packed``, its own tokens}."""
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

    def vectors(self, params: Params, batch: Batch) -> jax.Array | None:
        """``[B, T]`` float32 of norm 1: the target of heads that the teachers teach; None where no head needs it."""
        if "online" not in batch:
            return batch.get("teachers")
        return join(
            [
                self.online[name].vectors(params[name], batch["online"][name])
                if name in self.online
                else batch["cached"][name]
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

    def loss(
        params: Mapping[str, Any], teachers: Params, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        pooled = student.pooled(params, batch, key)
        vectors = student.project(params, pooled, stage.heads)
        # No gradient flows to a target; heads with the same target object share its similarities and their order.
        taught = teaching.vectors(teachers, batch)
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
    recipe: Recipe, stage: ResolvedStage, student: Student, partition: Partition, teaching: Teaching
) -> StageProgram:
    """The train step and the evaluation of a stage, jitted."""
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

    return StageProgram(
        partition=partition,
        optimizer=optimizer,
        step=jax.jit(step, donate_argnums=(0, 1)),
        evaluate=jax.jit(evaluate),
    )
