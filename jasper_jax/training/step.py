"""The train step: one pure function ``(trained, optimizer state, frozen, teachers, batch, step) -> (.., metrics)``.

It runs under ``jax.jit`` on the global batch. The gradient is taken with respect to the trained leaves alone; the
frozen ones, and the parameters of teachers that run in the step, are arguments like the batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jasper_jax.encoders.gradients import summed_in
from jasper_jax.parameters.sharding import shardings
from jasper_jax.training.mesh import abstract_state, put_batch, share_of
from jasper_jax.training.optimizer import learning_rate, make_optimizer
from jasper_jax.training.partition import Flat, Partition
from jasper_jax.training.stage_kind import BatchArrays, Scalars, StageKind
from jasper_jax.training.teaching import Teaching

TeacherParams = Mapping[str, Any]
"""The parameters of the teachers that run in the step, by name."""


@dataclasses.dataclass(frozen=True)
class StageProgram:
    """The functions of a stage, all pure; ``step`` and ``evaluate`` are compiled once per number of rows."""

    partition: Partition
    optimizer: optax.GradientTransformation
    step: Callable[[Flat, Any, Flat, TeacherParams, BatchArrays, jax.Array], tuple[Flat, Any, Scalars]]
    evaluate: Callable[[Flat, Flat, TeacherParams, BatchArrays], Scalars]


def make_program(kind: StageKind, partition: Partition, teaching: Teaching, mesh: Mesh | None = None) -> StageProgram:
    """The train step and the evaluation of a stage, jitted; on a ``mesh``, lower them within ``jax.set_mesh``, with
    arguments placed by ``jasper_jax.training.mesh``."""
    stage, student = kind.stage, kind.student
    loss = kind.loss(teaching)
    settings = kind.recipe.training
    optimizer, rate = make_optimizer(stage.settings, settings.optimizer_dtype), learning_rate(stage.settings)
    drops = bool(student.dropout or student.vector_dropout)
    seed = jax.random.key(kind.recipe.seed)

    def step(
        trained: Flat, opt_state: Any, frozen: Flat, teachers: TeacherParams, batch: BatchArrays, number: jax.Array
    ) -> tuple[Flat, Any, Scalars]:
        # 1000 + index: the first parameters were drawn from smaller numbers (``Student.init``).
        key = jax.random.fold_in(jax.random.fold_in(seed, 1000 + stage.index), number) if drops else None

        def objective(part: Flat) -> tuple[jax.Array, Scalars]:
            return loss(partition.merge(part, frozen), teachers, batch, key)

        with summed_in(settings.gradient_dtype):
            (value, terms), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        norm = optax.tree.norm(grads)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        metrics = {"loss": value, "grad_norm": norm, "learning_rate": jnp.asarray(rate(number), jnp.float32)}
        moved: Any = optax.apply_updates(trained, updates)
        return moved, opt_state, {**metrics, **terms}

    def evaluate(trained: Flat, frozen: Flat, teachers: TeacherParams, batch: BatchArrays) -> Scalars:
        value, terms = loss(partition.merge(trained, frozen), teachers, batch, None)
        return {"loss": value, **terms}

    if mesh is None:
        return StageProgram(partition, optimizer, jax.jit(step, donate_argnums=(0, 1)), jax.jit(evaluate))
    everywhere = NamedSharding(mesh, PartitionSpec())
    trained, _ = jax.eval_shape(partition.split, kind.active(student.shapes()))
    placed = shardings(trained, mesh)
    state = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, trained, mesh))
    return StageProgram(
        partition,
        optimizer,
        step=jax.jit(step, donate_argnums=(0, 1), out_shardings=(placed, state, everywhere)),
        evaluate=jax.jit(evaluate, out_shardings=everywhere),
    )


class CompiledPrograms:
    """``step`` and ``evaluate`` of a stage, one program for each shape of a batch; counts them and the seconds that
    compiling took."""

    def __init__(self, program: StageProgram, mesh: Mesh, replicated: Sequence[str]):
        """``replicated``: the arrays of a batch that lie on every device."""
        self._program, self._mesh, self._share, self._replicated = program, mesh, share_of(mesh), replicated
        self._compiled: dict[Any, Any] = {}
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Programs compiled so far, the evaluation's among them."""
        return len(self._compiled)

    def step(self, trained: Any, optimizer: Any, frozen: Any, teachers: Any, batch: Any, number: Any) -> Any:
        """``StageProgram.step`` on a loaded batch."""
        batch = put_batch(batch, self._mesh, self._share, self._replicated)
        return self._call("step", (trained, optimizer, frozen, teachers, batch, number), batch)

    def evaluate(self, trained: Any, frozen: Any, teachers: Any, batch: Any) -> Any:
        """``StageProgram.evaluate`` on a loaded batch."""
        batch = put_batch(batch, self._mesh, self._share, self._replicated)
        return self._call("evaluate", (trained, frozen, teachers, batch), batch)

    def _call(self, name: str, arguments: tuple[Any, ...], batch: Any) -> Any:
        key = (name, *(np.shape(leaf) for leaf in jax.tree.leaves(batch)))
        if key not in self._compiled:
            began = time.monotonic()
            with jax.set_mesh(self._mesh):
                self._compiled[key] = getattr(self._program, name).lower(*arguments).compile()
            self.seconds += time.monotonic() - began
        return self._compiled[key](*arguments)
