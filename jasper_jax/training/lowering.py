"""The train step of a stage, lowered for another machine: shapes and shardings in place of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.sharding import row_shards
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.online import OnlineTeacher
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.mesh import abstract_params, abstract_state, batch_shardings, with_shardings
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
    vectors: TeacherVectors,
    stage: ResolvedStage,
    student: Student,
    mesh: Mesh,
    platform: str,
) -> LoweredStep:
    """The step of ``stage`` for ``mesh``, whose devices are of ``platform`` (``tpu``, ``gpu``, ``cpu``)."""
    teaching, teachers = abstract_teachers(vectors)
    form = attention_form(platform)
    student = dataclasses.replace(student, encoder=dataclasses.replace(student.encoder, attention=form))
    if (vision_model := student.vision_model) is not None:
        vision = dataclasses.replace(vision_model.encoder, attention=form)
        student = dataclasses.replace(student, vision_model=dataclasses.replace(vision_model, encoder=vision))
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
    rows = kind.row_division(mesh).fill(stage.width)
    batch, length = kind.abstract_batch(rows, row_shards(mesh), teaching)
    own = {name: abstract_params(teachers[name], mesh) for name in batch.get("online", ())}
    batch = with_shardings(batch, batch_shardings(batch, mesh, kind.replicated))
    with jax.set_mesh(mesh):
        lowered = program.step.lower(trained, optimizer, frozen, own, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return LoweredStep(lowered, trained, frozen, optimizer, own, rows, length)


def attention_form(platform: str) -> str:
    """The form of attention that a program for devices of ``platform`` takes."""
    return {"tpu": "tpu", "gpu": "cuda"}.get(platform, "auto")


def abstract_teachers(vectors: TeacherVectors) -> tuple[Teaching, dict[str, Any]]:
    """The teachers, and the parameters of those that run in the step, as shapes in the dtype they compute in."""
    if not vectors.needed:
        return Teaching(), {}
    online = {one.name: _online(one) for one in vectors.teachers if one.settings.mode == "online"}
    dims = {one.name: one.dim for one in vectors.teachers}
    return (
        Teaching(dims, {name: teacher for name, (teacher, _) in online.items()}, vectors.weights),
        {name: params for name, (_, params) in online.items()},
    )


def _online(model: TeacherModel) -> tuple[OnlineTeacher, Any]:
    folder = model.source
    assert isinstance(folder, ModelFolder)  # backend: torch is never online
    encoder = encoder_from_config(folder.hf_config, str(folder.path))
    dtype = jnp.dtype(model.settings.compute_dtype)
    pooled, dim = folder.pooling.size(encoder.hidden_size), model.dim
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    # Of a model that is only described, the Dense steps are known by their dimensions alone: one, as in Stella's.
    known = [((s.kernel.shape, s.bias is not None), s.activation) for s in folder.outputs.get(dim, ())]
    steps = known or ([(((pooled, dim), True), "identity")] if folder.outputs else [])
    dense = tuple(
        (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[1:], jnp.float32) if bias else None)
        for (shape, bias), _ in steps
    )
    params = {"encoder": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes), "dense": dense}
    return OnlineTeacher(encoder, folder.pooling, tuple(activation for _, activation in steps), dtype.name), params
