"""The train step: one pure function ``(trained, optimizer state, frozen, teachers, batch, step) -> (.., metrics)``.

It runs under ``jax.jit`` on the global batch. The gradient is taken with respect to the trained leaves alone; the
frozen ones, and the parameters of teachers that run in the step, are arguments like the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jasper_jax.parameters.sharding import shardings
from jasper_jax.training.mesh import abstract_state
from jasper_jax.training.optimizer import learning_rate, make_optimizer
from jasper_jax.training.partition import Flat, Partition
from jasper_jax.training.stage_kind import Arrays, Metrics, StageKind
from jasper_jax.training.teaching import Teaching

Teachers = Mapping[str, Any]
"""Teacher -> parameters of one that runs in the step."""


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """The functions of a stage, all pure; ``step`` and ``evaluate`` are compiled once per number of rows."""

    partition: Partition
    optimizer: optax.GradientTransformation
    step: Callable[[Flat, Any, Flat, Teachers, Arrays, jax.Array], tuple[Flat, Any, Metrics]]
    evaluate: Callable[[Flat, Flat, Teachers, Arrays], Metrics]


def make_program(kind: StageKind, partition: Partition, teaching: Teaching, mesh: Mesh | None = None) -> StageProgram:
    """The train step and the evaluation of a stage, jitted; on a ``mesh`` they are to be lowered within
    ``jax.set_mesh``, with arguments that lie as ``jasper_jax.training.mesh`` lays them."""
    stage, student = kind.stage, kind.student
    loss = kind.loss(teaching)
    optimizer, rate = make_optimizer(stage.settings), learning_rate(stage.settings)
    drops = bool(student.dropout or student.vector_dropout)
    seed = jax.random.key(kind.recipe.seed)

    def step(
        trained: Flat, opt_state: Any, frozen: Flat, teachers: Teachers, batch: Arrays, number: jax.Array
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

    def evaluate(trained: Flat, frozen: Flat, teachers: Teachers, batch: Arrays) -> Metrics:
        value, terms = loss(partition.merge(trained, frozen), teachers, batch, None)
        return {"loss": value, **terms}

    if mesh is None:
        return StageProgram(partition, optimizer, jax.jit(step, donate_argnums=(0, 1)), jax.jit(evaluate))
    replicated = NamedSharding(mesh, PartitionSpec())
    trained, _ = jax.eval_shape(partition.split, kind.active(student.shapes()))
    placed = shardings(trained, mesh)
    state = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, trained, mesh))
    return StageProgram(
        partition,
        optimizer,
        step=jax.jit(step, donate_argnums=(0, 1), out_shardings=(placed, state, replicated)),
        evaluate=jax.jit(evaluate, out_shardings=replicated),
    )
