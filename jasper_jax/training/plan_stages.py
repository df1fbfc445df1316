"""``jasper plan``: the step of every stage, lowered for a machine that need not exist and handed to ``planning``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from jax.sharding import Mesh

from jasper_jax.encoders.tower import REMAT
from jasper_jax.parameters.sharding import leaf_shards, row_shards
from jasper_jax.planning.machine import Target
from jasper_jax.planning.memory import device_bytes
from jasper_jax.planning.plan import PlannedStage, StagePlan, plan_program
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage, resolve_stages
from jasper_jax.runtime.progress import say
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.lowering import LoweredStep, lower_step
from jasper_jax.training.model_flops import step_flops
from jasper_jax.training.run_mesh import mesh_needs, mesh_sizes

PIECES = (2, 4, 8, 16, 32)
"""Into how many pieces a batch that does not fit is divided, one after the other."""


def plan_stages(recipe: Recipe, vectors: TeacherVectors, student: Student, target: Target) -> Iterator[StagePlan]:
    """Plan every stage of the recipe on ``target``; one that does not fit, again with settings that save memory; one
    that fits, with the lightest recomputation that fits too.

    Raises:
      UserError: the mesh or a batch does not divide over the devices, or the compiler refuses a program.
    """
    stages = resolve_stages(recipe)
    needs = mesh_needs(student, vectors)
    mesh = target.mesh(mesh_sizes(recipe.mesh, target.devices, stages, needs, target.nodes))
    for stage in stages:
        say(f"{target}: compiling {stage.name}")
        plan = plan_stage(recipe, vectors, stage, student, mesh, target)
        yield plan
        if plan.fits:
            yield from _with_less_recomputation(recipe, vectors, stage, student, mesh, target)
        else:
            yield from _with_less_memory(recipe, vectors, stage, student, mesh, target)


def plan_stage(
    recipe: Recipe, vectors: TeacherVectors, stage: ResolvedStage, student: Student, mesh: Mesh, target: Target
) -> StagePlan:
    """Lower and compile one stage's step."""
    step = lower_step(recipe, vectors, stage, student, mesh, target.platform)
    return plan_program(planned_stage(stage, student, step, mesh), step.lowered, mesh, target)


def planned_stage(stage: ResolvedStage, student: Student, step: LoweredStep, mesh: Mesh) -> PlannedStage:
    """What ``planning`` needs to know of a stage and its lowered step."""
    state = {"trained": step.trained, "frozen": step.frozen, "optimizer": step.optimizer, "teachers": step.teachers}
    texts, length = stage.batch_size, step.length  # every text at its full length
    flops = step_flops(stage, student, step.trained, step.frozen)
    return PlannedStage(
        name=stage.name,
        batch_size=stage.batch_size,
        steps=stage.steps,
        rows=step.rows,
        empty=step.rows - stage.width,
        state_bytes={name: device_bytes(tree) for name, tree in state.items()},
        model_flops=flops and flops(texts, texts * length, texts * length**2),
        leaves=tuple(leaf_shards({**step.frozen, **step.trained}, mesh)),
    )


def _with_less_recomputation(
    recipe: Recipe, vectors: TeacherVectors, stage: ResolvedStage, student: Student, mesh: Mesh, target: Target
) -> Iterator[StagePlan]:
    """Compile the stage with each lighter ``student.remat``, the lightest first, until one fits too; none where no
    layer is trained, so that there is nothing to recompute."""
    if all(pattern.startswith("heads/") for pattern in stage.train):
        return
    for remat in list(REMAT)[: list(REMAT).index(student.remat)]:
        say(f"{target}: compiling {stage.name} with student.remat={remat}")
        lighter = dataclasses.replace(student, remat=remat)
        plan = plan_stage(recipe, vectors, stage, lighter, mesh, target)
        yield dataclasses.replace(plan, settings=(f"student.remat={remat}",))
        if plan.fits:
            return


def _with_less_memory(
    recipe: Recipe, vectors: TeacherVectors, stage: ResolvedStage, student: Student, mesh: Mesh, target: Target
) -> Iterator[StagePlan]:
    """Plans of the stage with less and less memory, until one fits: layers recomputed, then the batch in pieces."""
    settings: tuple[str, ...] = ()
    for remat in list(REMAT)[list(REMAT).index(student.remat) + 1 :]:
        student, settings = dataclasses.replace(student, remat=remat), (f"student.remat={remat}",)
        plan = plan_stage(recipe, vectors, stage, student, mesh, target)
        yield dataclasses.replace(plan, settings=settings)
        if plan.fits:
            return
    limit = recipe.training.micro_batch or stage.width
    for texts in (stage.width // pieces for pieces in PIECES):
        if not row_shards(mesh) <= texts < limit:
            continue
        training = recipe.training.model_copy(update={"micro_batch": texts})
        smaller = recipe.model_copy(update={"training": training})
        plan = plan_stage(smaller, vectors, stage, student, mesh, target)
        yield dataclasses.replace(plan, settings=(*settings, f"training.micro_batch={texts}"))
        if plan.fits:
            return
    say(
        f"{stage.name}: neither student.remat nor training.micro_batch makes it fit on {target}; use more chips, or"
        f" chips with more memory"
    )
