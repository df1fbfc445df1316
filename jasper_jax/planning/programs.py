"""The very train step of a stage, lowered for devices that may not exist: shapes and shardings in place of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.sharding import row_shards
from jasper_jax.recipe.config import Teacher
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.run import Run
from jasper_jax.student.student import Student
from jasper_jax.teachers.online import OnlineTeacher
from jasper_jax.training.mesh import abstract_params, abstract_state, batch_shardings, laid
from jasper_jax.training.partition import make_partition
from jasper_jax.training.step import Teaching, active_params, make_program, pieces_of


@dataclasses.dataclass(frozen=True)
class Step:
    """A stage's step, lowered, and what it was lowered with (flat shapes with shardings)."""

    lowered: Any
    trained: Mapping[str, Any]
    frozen: Mapping[str, Any]
    optimizer: Any
    teachers: Mapping[str, Any]
    rows: int
    length: int


def lower_step(run: Run, stage: ResolvedStage, student: Student, mesh: Mesh, platform: str) -> Step:
    """The step of ``stage`` for ``mesh``, whose devices are of ``platform`` (``tpu``, ``gpu``, ``cpu``).

    Every text is taken to be as long as training allows, one in each row: the most that a batch can be.
    """
    form = platform if platform in ("tpu", "gpu") else "auto"
    student = dataclasses.replace(student, encoder=dataclasses.replace(student.encoder, attention=form))
    if (sight := student.sight) is not None:
        vision = dataclasses.replace(sight.encoder, attention=form)
        student = dataclasses.replace(student, sight=dataclasses.replace(sight, encoder=vision))
    length = min(run.recipe.training.max_length or student.max_length, student.max_length)
    taking = run.recipe.teachers if run.needs_vectors and not stage.images else ()
    online = {t.name: _online(run, t, form) for t in taking if t.mode == "online"}
    dim = run.teacher_dim if run.needs_vectors else None
    teaching = Teaching(dim, tuple(t.name for t in run.recipe.teachers), {n: one for n, (one, _) in online.items()})
    active = active_params(stage, student.shapes())
    partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
    program = make_program(run.recipe, stage, student, partition, teaching, mesh)
    trained, frozen = (abstract_params(part, mesh) for part in jax.eval_shape(partition.split, active))
    optimizer = abstract_state(program.optimizer, trained, mesh)
    teachers = {name: abstract_params(params, mesh) for name, (_, params) in online.items()}
    multiple = row_shards(mesh) * pieces_of(run.recipe, stage)
    rows = -(-stage.batch_size // multiple) * multiple
    taught = any(run.recipe.heads[h].target == "teachers" for h in stage.heads)
    if stage.images and student.sight is not None:
        batch, length = _abstract_images(student, stage.batch_size, rows), len(student.sight.alone)
    else:
        batch = _abstract_batch(run, stage.batch_size, rows, length, taught, online)
    batch = laid(batch, batch_shardings(batch, mesh))
    with jax.set_mesh(mesh):
        lowered = program.step.lower(trained, optimizer, frozen, teachers, batch, jax.ShapeDtypeStruct((), jnp.int32))
    return Step(lowered, trained, frozen, optimizer, teachers, rows, length)


def _packed(texts: int, rows: int, length: int, prompts: bool = False) -> dict[str, Any]:
    """``jasper_jax.encoders.packed.Packed`` with one text a row."""
    whole = {
        "ids": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        "slots": jax.ShapeDtypeStruct((texts,), jnp.int32),
    }
    return {**whole, "prompts": whole["lengths"]} if prompts else whole


def _abstract_batch(run: Run, texts: int, rows: int, length: int, taught: bool, online: Mapping[str, Any]) -> Any:
    batch: dict[str, Any] = _packed(texts, rows, length)
    if not taught:
        return batch
    if not online:
        return {**batch, "teachers": jax.ShapeDtypeStruct((texts, run.teacher_dim or 0), jnp.float32)}
    by_name = {t.name: t for t in run.recipe.teachers}
    cached = {
        n: jax.ShapeDtypeStruct((texts, run.dim_of(t)), jnp.float32) for n, t in by_name.items() if n not in online
    }
    return {
        **batch,
        "cached": cached,
        "online": {
            name: _packed(texts, rows, by_name[name].max_length or length, not one.pooling.include_prompt)
            for name, (one, _) in online.items()
        },
    }


def _abstract_images(student: Student, images: int, rows: int) -> dict[str, Any]:
    """As ``jasper_jax.batches.image_batches`` makes them."""
    assert student.sight is not None
    size = student.sight.preprocessing.size
    return {
        "pixels": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
        "captions": jax.ShapeDtypeStruct((images, student.width), jnp.float32),
        "same": jax.ShapeDtypeStruct((images,), jnp.int32),
    }


def _online(run: Run, teacher: Teacher, form: str) -> tuple[OnlineTeacher, Any]:
    """A teacher that runs in the step, and the shapes of its parameters in the dtype it computes in."""
    source = run.teacher_facts(teacher)
    assert source is not None
    folder = read_model_folder(source, causal=teacher.causal)
    encoder = dataclasses.replace(encoder_from_config(folder.hf_config, str(folder.path)), attention=form)
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
