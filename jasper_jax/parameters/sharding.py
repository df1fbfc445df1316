"""Sharding: rules from names of leaves to axes of the mesh, and constraints inside the step.

The mesh has three axes. ``data`` replicates the parameters, ``fsdp`` shards them and the optimizer state (arXiv
1910.02054, stage 3), ``tensor`` shards the wide matrices of a layer (arXiv 1909.08053). Rows of a batch lie over
``data`` and ``fsdp``. Of several nodes, ``data`` is the axis between them (``parameters.nodes``). The step is one
program on global arrays; XLA's partitioner inserts the communication.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jasper_jax.parameters.nodes import device_grid
from jasper_jax.parameters.patterns import first_match
from jasper_jax.runtime.errors import UserError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)
"""The axes that shard the rows of a batch. Axes that a mesh lacks are ignored everywhere."""
WIDE = (FSDP, TENSOR)
"""The axes that shard the dimensions of vectors."""

Axes = str | tuple[str, ...] | None

RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # Projections [D, E]: each device computes its share of the dimensions, for all texts. Only similarities [B, B] are
    # summed over devices; neither weights nor vectors are exchanged.
    ("heads/**/kernel", (None, WIDE)),
    ("heads/**/bias", (WIDE,)),
    ("dense/*/0", (None, WIDE)),
    ("dense/*/1", (WIDE,)),
    # A lookup takes rows: sharded by width, it needs no communication of the table.
    ("encoder/**/embedding", (None, WIDE)),
    ("encoder/**/latents", (None, FSDP)),
    # Column-parallel matrices are followed by row-parallel ones: one sum over ``tensor`` for both.
    ("**/attention/output/kernel", (TENSOR, FSDP)),
    ("**/feed_forward/down/kernel", (TENSOR, FSDP)),
    ("encoder/**/kernel", (FSDP, TENSOR)),
    ("vision/patches/kernel", (None, WIDE)),
    ("vision/**/kernel", (FSDP, TENSOR)),
    ("vision/positions", (None, WIDE)),
    ("vision/class_token", ()),
    ("projector/kernel", (FSDP, TENSOR)),
    ("losses/**", ()),
    ("**/query/bias", (TENSOR,)),
    ("**/key/bias", (TENSOR,)),
    ("**/value/bias", (TENSOR,)),
    ("**/gate/bias", (TENSOR,)),
    ("**/up/bias", (TENSOR,)),
    ("**/bias", ()),
    ("**/scale", ()),
)
"""(pattern, axes of the leaf's last dimensions); the first match counts, and every leaf needs one. The axis of stacked
layers is never sharded, because a scan slices it."""

SMALL = 1 << 18
"""The most numbers per layer that a leaf may replicate when its shape does not divide by all axes of its rule."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The sharding of one leaf; ``note``: why it is replicated where its rule would shard it."""

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    note: str = ""

    def shard(self, mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[int, ...]:
        """The shape of one device's shard."""
        sizes = [extent(axes, mesh) for axes in self.spec]
        return tuple(n // size for n, size in zip(self.shape, sizes + [1] * len(self.shape)))


def place(name: str, shape: tuple[int, ...], mesh: Mesh | jax.sharding.AbstractMesh) -> Placement:
    """The sharding of the leaf ``name``. An axis that does not divide its dimension goes to another dimension, if it
    divides one. UserError: a large leaf would be replicated where it should be sharded. KeyError: no rule covers it."""
    try:
        wanted: Any = first_match(RULES, name)
    except KeyError:
        raise KeyError(f"no sharding rule covers the leaf {name!r}") from None
    first = len(shape) - len(wanted)
    axes: list[tuple[str, ...]] = [() for _ in shape]
    left: list[str] = []
    for i, group in enumerate(wanted, first):
        for axis in present(group, mesh):
            if not _give(axes, shape, axis, i, mesh):
                left.append(axis)
    homeless = [a for a in left if not any(_give(axes, shape, a, i, mesh) for i in reversed(range(first, len(shape))))]
    spec = PartitionSpec(*(a[0] if len(a) == 1 else (a or None) for a in axes))
    where = Placement(name, shape, spec)
    if not homeless:
        return where
    sizes = " and ".join(f"{axis} = {mesh.shape[axis]}" for axis in homeless)
    note = f"{list(shape)} does not divide by {sizes}"
    if math.prod(where.shard(mesh)[first:]) > SMALL:
        raise UserError(f"mesh: {name} {note}; choose sizes that divide one of its last {len(wanted)} dimensions")
    return dataclasses.replace(where, note=note)


def _give(axes: list[tuple[str, ...]], shape: tuple[int, ...], axis: str, i: int, mesh: Any) -> bool:
    """Add ``axis`` to dimension i, if that divides by all its axes."""
    if shape[i] % math.prod(mesh.shape[a] for a in (*axes[i], axis)):
        return False
    axes[i] = (*axes[i], axis)
    return True


def present(axes: Axes, mesh: Any) -> tuple[str, ...]:
    """The ``axes`` that the mesh has."""
    named = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return tuple(axis for axis in named if axis in mesh.shape)


def extent(axes: Axes, mesh: Any) -> int:
    """The number of devices along ``axes``."""
    return math.prod(mesh.shape[axis] for axis in present(axes, mesh))


def leaf_shards(
    leaves: Mapping[str, Any], mesh: Mesh | jax.sharding.AbstractMesh
) -> list[tuple[Placement, tuple[int, ...], int]]:
    """Each leaf's sharding, the shape of a device's shard, and its bytes."""
    shards = []
    for name, leaf in leaves.items():
        where = place(name, tuple(leaf.shape), mesh)
        shard = where.shard(mesh)
        shards.append((where, shard, math.prod(shard) * leaf.dtype.itemsize))
    return shards


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a nested or flat tree of parameters (arrays or shapes)."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, place(_name(path), tuple(leaf.shape), mesh).spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "key", getattr(entry, "idx", entry))) for entry in path)


def like_leaves(tree: Any, known: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings for an optimizer's state: that of the leaf with the same name, or replicated (counters)."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return next((known[name] for name in names if name in known), replicated)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def devices() -> int:
    """The number of devices of the current mesh; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def constrain(x: jax.Array, *axes: Axes) -> jax.Array:
    """``x`` with its dimensions sharded over these axes of the current mesh. Axes that do not divide a dimension are
    ignored; without a mesh ``x`` is returned."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    taken: list[tuple[str, ...]] = [() for _ in x.shape]
    for i, group in enumerate(axes):
        for axis in present(group, mesh):
            _give(taken, x.shape, axis, i, mesh)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(a or None for a in taken)))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's rows."""
    return NamedSharding(mesh, PartitionSpec(present(ROWS, mesh)))


def row_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """The number of shards of a batch's rows."""
    return extent(ROWS, mesh)


def mesh_sizes_of(mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of a mesh, as in a recipe."""
    return extent(DATA, mesh), extent(FSDP, mesh), extent(TENSOR, mesh)


def make_mesh(sizes: tuple[int, int, int], devices: Any = None) -> Mesh:
    """The mesh of these sizes (data, fsdp, tensor) over all devices of all processes (or ``devices``)."""
    return mesh_over(dict(zip(AXES, sizes)), jax.devices() if devices is None else devices)


def mesh_over(axes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The mesh with these axes, name -> size, the one that communicates least first; see :func:`device_grid`."""
    grid = device_grid(tuple(axes.values()), devices)
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
