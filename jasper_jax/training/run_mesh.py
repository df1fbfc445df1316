"""The mesh of a run: its sizes from the recipe's ``mesh``, what they must divide, and how nodes take part in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from jasper_jax.parameters.nodes import count_nodes, divide, node_of
from jasper_jax.parameters.sharding import AXES, leaf_shards, make_mesh
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_training import Mesh as MeshSizes
from jasper_jax.recipe.stages import ResolvedStage, resolve_stages
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.lowering import abstract_teachers

MOST_SHARDS = 32
"""The most devices over which ``auto`` shards parameters. A 32nd of the state of the largest student here is below 1
GiB (docs/results/pods.md), and over more devices each sends more: docs/design.md has the bytes."""


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a mesh has to divide, of all models that run in the step.

    Attributes:
      heads: by model, its key-value heads, which ``tensor`` has to divide.
      leaves: by model, its parameters by name, as arrays or shapes; see ``parameters.sharding``.
    """

    heads: Mapping[str, int]
    leaves: Mapping[str, Mapping[str, Any]]


def run_mesh(recipe: Recipe, student: Student, vectors: TeacherVectors) -> Mesh:
    """The mesh of a run over all devices of all processes, checked before anything else is done.

    Raises:
      UserError: as :func:`mesh_sizes`; or nodes differ in their number of devices.
    """
    devices = jax.devices()
    nodes = count_nodes([node_of(device) for device in devices])
    sizes = mesh_sizes(recipe.mesh, len(devices), resolve_stages(recipe), mesh_needs(student, vectors), nodes)
    _, (_, fsdp_nodes, _) = divide(sizes, len(devices) // nodes)
    if fsdp_nodes > 1:
        say(
            f"mesh: fsdp {sizes[1]} spans {fsdp_nodes} nodes, so every step sends parameters between nodes; with data a"
            f" multiple of the {nodes} nodes they stay inside."
        )
    return make_mesh(sizes)


def mesh_needs(student: Student, vectors: TeacherVectors) -> Needs:
    """What the mesh of a run has to divide: the student's encoders, and teachers where they run in the step."""
    encoders: dict[str, Any] = {"the student": student.encoder}
    if student.vision_model is not None:
        encoders["the student's vision encoder"] = student.vision_model.encoder
    leaves = {"the student": flatten(student.shapes())}
    teaching, params = abstract_teachers(vectors)
    for name, teacher in teaching.online.items():
        encoders[f"the online teacher {name}"] = teacher.encoder
        leaves[f"the online teacher {name}"] = flatten(params[name])
    return Needs({name: key_value_heads(encoder.config) for name, encoder in encoders.items()}, leaves)


def key_value_heads(config: Any) -> int:
    """The key-value heads of an encoder's config; as many as heads unless queries are grouped."""
    return getattr(config, "num_kv_heads", config.num_heads)


def mesh_sizes(
    wanted: MeshSizes | str, devices: int, stages: Sequence[ResolvedStage], needs: Needs, nodes: int = 1
) -> tuple[int, int, int]:
    """``mesh`` of the recipe as numbers (data, fsdp, tensor) whose product is ``devices``.

    ``auto``: inside a node, ``fsdp`` is the most devices, at most :data:`MOST_SHARDS`, over which parameters divide;
    the rest and the nodes are ``data``. ``tensor`` is 1 as long as every stage's batch divides over the others.

    Args:
      nodes: equal groups of ``devices`` with fast links; see ``parameters.nodes``.

    Raises:
      UserError: the product is not the number of devices; a batch or a parameter does not divide; or ``tensor`` does
        not divide the heads of a model or the devices of a node.
    """
    stages = [stage for stage in stages if not stage.kind.pads_batches]
    if not isinstance(wanted, MeshSizes):
        return _automatic(devices, stages, needs, nodes)
    sizes = (wanted.data, wanted.fsdp, wanted.tensor)
    if math.prod(sizes) != devices:
        product = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes))
        raise UserError(
            f"mesh: {product} is {math.prod(sizes)}, there {'is' if devices == 1 else 'are'} {devices}"
            f" device{'' if devices == 1 else 's'}; the product must be their number, or mesh: auto"
        )
    refuse_wide_tensor(wanted.tensor, needs.heads, devices // nodes)
    for stage in stages:
        refuse_uneven(stage, sizes[0] * sizes[1])
    refuse_undivided(sizes, needs)
    return sizes


def _automatic(devices: int, stages: Sequence[ResolvedStage], needs: Needs, nodes: int) -> tuple[int, int, int]:
    node, heads = devices // nodes, math.gcd(*needs.heads.values())
    refused: UserError | None = None
    for tensor in (n for n in range(1, node + 1) if node % n == 0 and heads % n == 0):
        if any(stage.batch_size % (devices // tensor) for stage in stages):
            continue
        inside = node // tensor
        for fsdp in (n for n in range(min(inside, MOST_SHARDS), 0, -1) if inside % n == 0):
            sizes = (devices // (fsdp * tensor), fsdp, tensor)
            try:
                refuse_undivided(sizes, needs)
            except UserError as error:
                refused = refused or error
            else:
                return sizes
    batches = ", ".join(map(str, sorted({stage.batch_size for stage in stages})))
    where = f"{devices} devices" + (f" in {nodes} nodes" if nodes > 1 else "")
    raise refused or UserError(
        f"mesh: auto finds no way to divide batches of {batches} texts and {heads} key-value heads over {where};"
        f" choose stages[].batch_size as a multiple of {devices}"
    )


def refuse_undivided(sizes: tuple[int, int, int], needs: Needs) -> None:
    """UserError if a large parameter of a model would be repeated on a mesh of these ``sizes``."""
    for leaves in needs.leaves.values():
        leaf_shards(leaves, AbstractMesh(sizes, AXES))


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
