"""The teachers of a recipe as shapes, and with them the train step of a stage, lowered for another machine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.recipe.config import Teacher
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.run import Run
from jasper_jax.student.student import Student
from jasper_jax.teachers.online import OnlineTeacher
from jasper_jax.training.lowering import LoweredStep
from jasper_jax.training.lowering import lower_step as lower
from jasper_jax.training.teaching import Teaching


def lower_step(run: Run, stage: ResolvedStage, student: Student, mesh: Mesh, platform: str) -> LoweredStep:
    """The step of ``stage`` for ``mesh``, whose devices are of ``platform`` (``tpu``, ``gpu``, ``cpu``)."""
    teaching, teachers = abstract_teachers(run)
    return lower(run.recipe, stage, student, mesh, platform, teaching, teachers)


def abstract_teachers(run: Run) -> tuple[Teaching, dict[str, Any]]:
    """The teachers, and the parameters of those that run in the step, as shapes in the dtype they compute in."""
    if not run.needs_vectors:
        return Teaching(), {}
    online = {t.name: _online(run, t) for t in run.recipe.teachers if t.mode == "online"}
    dims = {t.name: run.dim_of(t) for t in run.recipe.teachers}
    return (
        Teaching(dims, {name: teacher for name, (teacher, _) in online.items()}),
        {name: params for name, (_, params) in online.items()},
    )


def _online(run: Run, teacher: Teacher) -> tuple[OnlineTeacher, Any]:
    source = run.teacher_facts(teacher)
    assert source is not None
    folder = read_model_folder(source, causal=teacher.causal)
    encoder = encoder_from_config(folder.hf_config, str(folder.path))
    dtype = jnp.dtype(teacher.compute_dtype)
    pooled, dim = folder.pooling.size(encoder.hidden_size), run.dim_of(teacher)
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
