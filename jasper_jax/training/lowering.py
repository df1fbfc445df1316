"""The train step of a stage, lowered for devices that may not exist: shapes and shardings in place of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student
from jasper_jax.training.mesh import abstract_params, abstract_state, batch_shardings, laid
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.step import make_program
from jasper_jax.training.teaching import Teaching


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A stage's step, lowered, and what it was lowered with (flat shapes with shardings); a batch has ``rows`` rows of
    ``length`` tokens."""

    lowered: Any
    trained: Mapping[str, Any]
    frozen: Mapping[str, Any]
    optimizer: Any
    teachers: Mapping[str, Any]
    rows: int
    length: int


def lower_step(
    recipe: Recipe,
    stage: ResolvedStage,
    student: Student,
    mesh: Mesh,
    platform: str,
    teaching: Teaching,
    teachers: Mapping[str, Any],
) -> LoweredStep:
    """The step of ``stage`` for ``mesh``, whose devices are of ``platform`` (``tpu``, ``gpu``, ``cpu``).

    ``teaching`` says what teaches the stages on texts; ``teachers``: the parameters of those that run in the step, as
    shapes.
    """
    form = attention_form(platform)
    student = dataclasses.replace(student, encoder=dataclasses.replace(student.encoder, attention=form))
    if (sight := student.sight) is not None:
        vision = dataclasses.replace(sight.encoder, attention=form)
        student = dataclasses.replace(student, sight=dataclasses.replace(sight, encoder=vision))
    online = {
        name: dataclasses.replace(teacher, encoder=dataclasses.replace(teacher.encoder, attention=form))
        for name, teacher in teaching.online.items()
    }
    teaching = dataclasses.replace(teaching, online=online)
    kind = make_kind(recipe, stage, student)
    active = kind.active(student.shapes())
    partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
    program = make_program(kind, partition, teaching, mesh)
    trained, frozen = (abstract_params(part, mesh) for part in jax.eval_shape(partition.split, active))
    optimizer = abstract_state(program.optimizer, trained, mesh)
    multiple = kind.row_multiple(mesh)
    rows = -(-stage.batch_size // multiple) * multiple
    batch, length = kind.abstract_batch(rows, teaching)
    own = {name: abstract_params(teachers[name], mesh) for name in batch.get("online", ())}
    batch = laid(batch, batch_shardings(batch, mesh, kind.whole))
    with jax.set_mesh(mesh):
        lowered = program.step.lower(trained, optimizer, frozen, own, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return LoweredStep(lowered, trained, frozen, optimizer, own, rows, length)


def attention_form(platform: str) -> str:
    """The form of attention that a program for devices of ``platform`` takes."""
    return platform if platform in ("tpu", "gpu") else "auto"
