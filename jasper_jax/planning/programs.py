"""The teachers of a recipe as shapes, and with them the train step of a stage, lowered for another machine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.student.student import Student
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.online import OnlineTeacher
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.lowering import LoweredStep
from jasper_jax.training.lowering import lower_step as lower
from jasper_jax.training.teaching import Teaching


def lower_step(
    recipe: Recipe, vectors: TeacherVectors, stage: ResolvedStage, student: Student, mesh: Mesh, platform: str
) -> LoweredStep:
    """The step of ``stage`` for ``mesh``, whose devices are of ``platform`` (``tpu``, ``gpu``, ``cpu``)."""
    teaching, teachers = abstract_teachers(vectors)
    return lower(recipe, stage, student, mesh, platform, teaching, teachers)


def abstract_teachers(vectors: TeacherVectors) -> tuple[Teaching, dict[str, Any]]:
    """The teachers, and the parameters of those that run in the step, as shapes in the dtype they compute in."""
    if not vectors.needed:
        return Teaching(), {}
    online = {one.name: _online(one) for one in vectors.teachers if one.settings.mode == "online"}
    dims = {one.name: one.dim for one in vectors.teachers}
    return (
        Teaching(dims, {name: teacher for name, (teacher, _) in online.items()}),
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
