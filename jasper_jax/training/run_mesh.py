"""The mesh of a run: its sizes from the recipe's ``mesh``, what they must divide, and how nodes take part in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.nodes import count_nodes, divide, node_of
from jasper_jax.parameters.sharding import AXES, leaf_shards, make_mesh
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.config import Mesh as MeshSizes
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage, resolve_stages
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors


def run_mesh(recipe: Recipe, student: Student, vectors: TeacherVectors) -> Mesh:
    """The mesh of a run over all devices of all processes, checked before anything else is done.

    Raises:
      UserError: as :func:`mesh_sizes`; nodes differ in their number of devices; or a leaf does not divide.
    """
    devices = jax.devices()
    nodes = count_nodes([node_of(device) for device in devices])
    heads = attention_heads(student, vectors)
    sizes = mesh_sizes(recipe.mesh, len(devices), resolve_stages(recipe), heads, nodes)
    mesh = make_mesh(sizes)
    leaf_shards(flatten(student.shapes()), mesh)
    _, (_, fsdp_nodes, _) = divide(sizes, len(devices) // nodes)
    if fsdp_nodes > 1:
        say(
            f"mesh: fsdp {sizes[1]} spans {fsdp_nodes} nodes, so every step sends parameters between nodes; with data a"
            f" multiple of the {nodes} nodes they stay inside."
        )
    return mesh


def attention_heads(student: Student, vectors: TeacherVectors) -> dict[str, int]:
    """The key-value heads of each model that runs in the step: what ``tensor`` has to divide."""
    encoders: dict[str, Any] = {"the student": student.encoder}
    if student.vision_model is not None:
        encoders["the student's vision encoder"] = student.vision_model.encoder
    for teacher in vectors.teachers if vectors.needed else ():
        if teacher.settings.mode == "online" and isinstance(source := teacher.source, ModelFolder):
            encoders[f"the online teacher {teacher.name}"] = encoder_from_config(source.hf_config, str(source.path))
    return {name: key_value_heads(encoder.config) for name, encoder in encoders.items()}


def key_value_heads(config: Any) -> int:
    """The key-value heads of an encoder's config; as many as heads unless queries are grouped."""
    return getattr(config, "num_kv_heads", config.num_heads)


def mesh_sizes(
    wanted: MeshSizes | str, devices: int, stages: Sequence[ResolvedStage], heads: Mapping[str, int], nodes: int = 1
) -> tuple[int, int, int]:
    """``mesh`` of the recipe as numbers (data, fsdp, tensor) whose product is ``devices``.

    ``auto``: ``data`` is the number of nodes. Inside a node the parameters and the rows are divided by as many devices
    as every stage's batch divides by, and the matrices of each layer by the rest.

    Args:
      heads: by model, its key-value heads; see :func:`attention_heads`.
      nodes: equal groups of ``devices`` with fast links; see ``parameters.nodes``.

    Raises:
      UserError: the product is not the number of devices, a batch does not divide, or ``tensor`` does not divide the
        heads of a model or the devices of a node.
    """
    stages = [stage for stage in stages if not stage.kind.pads_batches]
    most = math.gcd(*heads.values())
    if not isinstance(wanted, MeshSizes):
        node = devices // nodes
        for fsdp in (d for d in range(node, 0, -1) if node % d == 0):
            if not any(stage.batch_size % (nodes * fsdp) for stage in stages) and most % (node // fsdp) == 0:
                return nodes, fsdp, node // fsdp
        batches = ", ".join(map(str, sorted({stage.batch_size for stage in stages})))
        where = f"{devices} devices" + (f" in {nodes} nodes" if nodes > 1 else "")
        raise UserError(
            f"mesh: auto finds no way to divide batches of {batches} texts and {most} key-value heads over {where};"
            f" choose stages[].batch_size as a multiple of {devices}"
        )
    sizes = (wanted.data, wanted.fsdp, wanted.tensor)
    if math.prod(sizes) != devices:
        product = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes))
        raise UserError(
            f"mesh: {product} is {math.prod(sizes)}, there {'is' if devices == 1 else 'are'} {devices}"
            f" device{'' if devices == 1 else 's'}; the product must be their number, or mesh: auto"
        )
    refuse_wide_tensor(wanted.tensor, heads, devices // nodes)
    for stage in stages:
        refuse_uneven(stage, sizes[0] * sizes[1])
    return sizes


def refuse_wide_tensor(tensor: int, heads: Mapping[str, int], node: int) -> None:
    """UserError if ``tensor`` does not divide the key-value heads of a model, or the ``node`` devices of a node."""
    counts = {f"key-value heads of {name}": number for name, number in heads.items()} | {"devices of a node": node}
    most = math.gcd(*counts.values())
    for what, number in counts.items():
        if number % tensor:
            allowed = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
            raise UserError(
                f"mesh.tensor: {tensor} does not divide the {number} {what}; allowed are {allowed}; take more of the"
                f" mesh as fsdp or data"
            )


def refuse_uneven(stage: ResolvedStage, shards: int) -> None:
    """UserError when the stage's batch does not divide by ``shards``."""
    if stage.batch_size % shards:
        below = stage.batch_size // shards * shards
        fit = f"{below} or {below + shards}" if below >= 2 else f"{below + shards}"
        raise UserError(
            f"stages[{stage.index}].batch_size: {stage.batch_size} texts do not divide over data × fsdp = {shards}"
            f" devices; take {fit}, or more of the mesh as tensor"
        )
