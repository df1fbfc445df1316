"""``jasper plan``: each stage's step compiled for a slice that need not exist; whether it fits, what it will cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.parameters.sharding import Placed, mesh_axes, mesh_sizes_of, parts, row_shards
from jasper_jax.planning.estimate import Estimate, estimate
from jasper_jax.planning.machine import Machine
from jasper_jax.planning.memory import DoesNotFit, does_not_fit
from jasper_jax.planning.programs import lower_step
from jasper_jax.planning.topology import Topology, topology_mesh
from jasper_jax.planning.work import Analysis, analyse
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage, resolve_stages
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.lowering import LoweredStep
from jasper_jax.training.mesh import mesh_sizes


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """A stage on a slice. ``state``: bytes on one device of what is named; ``settings``: what had to be changed in the
    recipe to make it fit, empty where nothing."""

    stage: ResolvedStage
    sizes: tuple[int, int, int]
    state: dict[str, int]
    leaves: tuple[tuple[Placed, tuple[int, ...], int], ...]
    analysis: Analysis | None
    estimate: Estimate | None
    too_large: DoesNotFit | None
    compile_seconds: float
    settings: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.estimate is not None and self.estimate.fits

    @property
    def hours(self) -> float:
        """Of the whole stage at its estimated step time."""
        assert self.estimate is not None
        return self.stage.steps * self.estimate.step_seconds / 3600


def plan_stages(
    recipe: Recipe, vectors: TeacherVectors, student: Student, topology: Topology | Machine
) -> Iterator[StagePlan]:
    """Every stage of the recipe on ``topology``; where one does not fit, once more with settings that make it fit.

    Raises:
      UserError: the mesh or a batch does not divide over the slice's devices.
    """
    stages = resolve_stages(recipe)
    sizes = mesh_sizes(recipe.mesh, topology.devices, stages, student.encoder.config.num_heads)
    mesh = topology.mesh(sizes) if isinstance(topology, Machine) else topology_mesh(topology, mesh_axes(sizes))
    for stage in stages:
        say(f"{topology}: compiling {stage.name}")
        found = plan_stage(recipe, vectors, stage, student, mesh, topology)
        yield found
        if not found.fits:
            yield from _made_to_fit(recipe, vectors, stage, student, mesh, topology)


def plan_stage(
    recipe: Recipe,
    vectors: TeacherVectors,
    stage: ResolvedStage,
    student: Student,
    mesh: Mesh,
    topology: Topology | Machine,
) -> StagePlan:
    """One stage, compiled."""
    step = lower_step(recipe, vectors, stage, student, mesh, "gpu" if isinstance(topology, Machine) else "tpu")
    began = time.monotonic()
    known: dict[str, Any] = {
        "stage": stage,
        "sizes": mesh_sizes_of(mesh),
        "state": state_bytes(step),
        "leaves": leaves(step, mesh),
    }
    try:
        compiled = step.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        too_large = does_not_fit(error)
        if too_large is None:
            raise UserError(f"the TPU compiler refuses {stage.name}: {str(error).splitlines()[0]}") from error
        seconds = time.monotonic() - began
        return StagePlan(**known, analysis=None, estimate=None, too_large=too_large, compile_seconds=seconds)
    seconds = time.monotonic() - began
    analysis = analyse(compiled, mesh)
    return StagePlan(
        **known,
        analysis=analysis,
        estimate=estimate(analysis, topology.chip, stage.batch_size),
        too_large=None,
        compile_seconds=seconds,
    )


def _made_to_fit(
    recipe: Recipe,
    vectors: TeacherVectors,
    stage: ResolvedStage,
    student: Student,
    mesh: Mesh,
    topology: Topology | Machine,
) -> Iterator[StagePlan]:
    """The stage with less memory for more time: layers recomputed, then smaller and smaller pieces of the batch."""
    settings: tuple[str, ...] = ()
    if not student.remat:
        student, settings = dataclasses.replace(student, remat=True), ("student.remat=true",)
        found = plan_stage(recipe, vectors, stage, student, mesh, topology)
        yield dataclasses.replace(found, settings=settings)
        if found.fits:
            return
    least = row_shards(mesh)
    pieces = [stage.batch_size // n for n in (2, 4, 8, 16, 32)]
    for texts in (m for m in pieces if m >= least and (recipe.training.micro_batch or m + 1) > m):
        training = recipe.training.model_copy(update={"micro_batch": texts})
        smaller = recipe.model_copy(update={"training": training})
        found = plan_stage(smaller, vectors, stage, student, mesh, topology)
        yield dataclasses.replace(found, settings=(*settings, f"training.micro_batch={texts}"))
        if found.fits:
            return
    say(f"{stage.name}: no setting of one recipe makes it fit on {topology}; take more chips, or more memory a chip")


def state_bytes(step: LoweredStep) -> dict[str, int]:
    """Bytes on one device of what lasts from step to step."""
    parts = {"trained": step.trained, "frozen": step.frozen, "optimizer": step.optimizer, "teachers": step.teachers}
    return {name: sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree)) for name, tree in parts.items()}


def _shard_bytes(leaf: Any) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def leaves(step: LoweredStep, mesh: Mesh) -> tuple[tuple[Placed, tuple[int, ...], int], ...]:
    """``sharding.parts`` of all the stage's parameters."""
    return tuple(parts({**step.frozen, **step.trained}, mesh))
