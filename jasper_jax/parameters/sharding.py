"""Where arrays lie on a mesh: rules from names of leaves to axes, and constraints inside the step.

The mesh has three axes. ``data`` repeats the parameters, ``fsdp`` divides them and the optimizer state (arXiv
1910.02054, stage 3), ``tensor`` divides the wide matrices of a layer (arXiv 1909.08053). Rows of a batch lie over
``data`` and ``fsdp``. The step is one program on global arrays; XLA's partitioner puts in the communication.

A long ``fsdp`` is two axes of the mesh (:func:`mesh_axes`), and gradients are summed over one after the other
(:func:`sum_in_steps`): for 256 chips at once the TPU compiler sends whole sums to every chip, twice the bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jasper_jax.parameters.patterns import first_match
from jasper_jax.runtime.errors import UserError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
FSDP2 = "fsdp2"
"""The second part of a long ``fsdp``; an axis that a mesh lacks is passed over wherever it is named."""
ALL = (DATA, FSDP, FSDP2, TENSOR)
"""Every device."""
ROWS = (DATA, FSDP, FSDP2)
"""The axes over which the rows of a batch lie."""
SHARDS = (FSDP, FSDP2)
"""The axes that divide parameters."""
WIDE = (FSDP, FSDP2, TENSOR)
"""The axes over which the dimensions of vectors lie."""

LONG, RING = 32, 16
"""An ``fsdp`` of more than LONG devices is made of two axes, the first of at most RING. Measured on programs of the TPU
compiler (libtpu 0.0.42, v5e): of a gradient [1536, 8960] it makes a reduce-scatter over 16 and 32 chips; over 64 only
where the shards have whole tiles, over 256 never, but an all-reduce. A side of v5e's torus has 16 chips."""

Axes = str | tuple[str, ...] | None

RULES: tuple[tuple[str, tuple[Axes, ...]], ...] = (
    # Projections [D, E]: every device makes its share of each vector's dimensions, for all texts. Only similarities
    # [B, B] are then summed over devices, neither the projections' weights nor whole vectors travel.
    ("heads/**/kernel", (None, WIDE)),
    ("heads/**/bias", (WIDE,)),
    ("dense/*/0", (None, WIDE)),
    ("dense/*/1", (WIDE,)),
    # A lookup takes rows: with the width divided it needs no communication of the table.
    ("encoder/**/embedding", (None, WIDE)),
    ("encoder/**/latents", (None, SHARDS)),
    # What follows a matrix divided by columns is divided by rows: one sum over ``tensor`` for the two of them.
    ("encoder/**/attention/output/kernel", (TENSOR, SHARDS)),
    ("encoder/**/feed_forward/down/kernel", (TENSOR, SHARDS)),
    ("encoder/**/kernel", (SHARDS, TENSOR)),
    ("vision/**/attention/output/kernel", (TENSOR, SHARDS)),
    ("vision/**/feed_forward/down/kernel", (TENSOR, SHARDS)),
    ("vision/patches/kernel", (None, WIDE)),
    ("vision/**/kernel", (SHARDS, TENSOR)),
    ("vision/positions", (None, WIDE)),
    ("vision/class_token", ()),
    ("vision/**/query/bias", (TENSOR,)),
    ("vision/**/key/bias", (TENSOR,)),
    ("vision/**/value/bias", (TENSOR,)),
    ("vision/**/up/bias", (TENSOR,)),
    ("projector/kernel", (SHARDS, TENSOR)),
    ("losses/**", ()),
    ("encoder/**/query/bias", (TENSOR,)),
    ("encoder/**/key/bias", (TENSOR,)),
    ("encoder/**/value/bias", (TENSOR,)),
    ("encoder/**/gate/bias", (TENSOR,)),
    ("encoder/**/up/bias", (TENSOR,)),
    ("**/bias", ()),
    ("**/scale", ()),
)
"""(pattern, axes of the leaf's last dimensions); the first row that matches counts, and every leaf needs one. Stacked
layers are never divided: a scan takes them one by one."""

SMALL = 1 << 18
"""Where a leaf's shape does not divide by all axes of its rule, at most so many numbers of a layer may be the same on
several devices."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """How one leaf lies: its spec, and why it is repeated where the rule would have it divided."""

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    note: str = ""

    def shard(self, mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[int, ...]:
        """The shape of one device's part."""
        sizes = [extent(axes, mesh) for axes in self.spec]
        return tuple(n // size for n, size in zip(self.shape, sizes + [1] * len(self.shape)))


def place(name: str, shape: tuple[int, ...], mesh: Mesh | jax.sharding.AbstractMesh) -> Placed:
    """Where the leaf called ``name`` lies.

    Where a dimension does not divide by its axes, it takes those of them that it divides by, and the others go to
    another dimension if they can.

    Raises:
      UserError: a large part would have to be repeated on devices that ought to divide it.
      KeyError: no rule covers the name.
    """
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
    where = Placed(name, shape, spec)
    if not homeless:
        return where
    said = dict.fromkeys(FSDP if a == FSDP2 else a for a in homeless)  # as a recipe says it
    sizes = " and ".join(f"{a} = {extent(SHARDS if a == FSDP else a, mesh)}" for a in said)
    note = f"{list(shape)} does not divide by {sizes}"
    if math.prod(where.shard(mesh)[first:]) > SMALL:
        raise UserError(f"mesh: {name} {note}; choose sizes that divide one of its last {len(wanted)} dimensions")
    return dataclasses.replace(where, note=note)


def _give(axes: list[tuple[str, ...]], shape: tuple[int, ...], axis: str, i: int, mesh: Any) -> bool:
    """Lay ``axis`` along dimension i too, if the dimension divides by all its axes then."""
    if shape[i] % math.prod(mesh.shape[a] for a in (*axes[i], axis)):
        return False
    axes[i] = (*axes[i], axis)
    return True


def present(axes: Axes, mesh: Any) -> tuple[str, ...]:
    """Those of ``axes`` that the mesh has."""
    named = axes if isinstance(axes, tuple) else () if axes is None else (axes,)
    return tuple(axis for axis in named if axis in mesh.shape)


def extent(axes: Axes, mesh: Any) -> int:
    """Over how many devices ``axes`` divide."""
    return math.prod(mesh.shape[axis] for axis in present(axes, mesh))


def parts(
    leaves: Mapping[str, Any], mesh: Mesh | jax.sharding.AbstractMesh
) -> list[tuple[Placed, tuple[int, ...], int]]:
    """Each leaf (an array or a shape): where it lies, the shape of a device's part, and its bytes."""
    found = []
    for name, leaf in leaves.items():
        where = place(name, tuple(leaf.shape), mesh)
        shard = where.shard(mesh)
        found.append((where, shard, math.prod(shard) * leaf.dtype.itemsize))
    return found


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The sharding of each leaf of a nested or flat tree of parameters (arrays or shapes)."""

    def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, place(_name(path), tuple(leaf.shape), mesh).spec)

    return jax.tree_util.tree_map_with_path(find, tree)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(entry, "key", getattr(entry, "idx", entry))) for entry in path)


def like_leaves(tree: Any, known: Mapping[str, NamedSharding], mesh: Mesh) -> Any:
    """Shardings for an optimizer's state: a part of it that is named as a leaf lies as that leaf does, counters are
    repeated."""
    whole = NamedSharding(mesh, PartitionSpec())

    def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return next((known[name] for name in names if name in known), whole)

    return jax.tree_util.tree_map_with_path(find, tree)


def devices() -> int:
    """How many devices the mesh has that the program is compiled for; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def constrain(x: jax.Array, *axes: Axes) -> jax.Array:
    """``x`` with its dimensions over these axes of the mesh that the program is compiled for; as it is without one.

    An axis that a dimension does not divide by is left out."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    taken: list[tuple[str, ...]] = [() for _ in x.shape]
    for i, group in enumerate(axes):
        for axis in present(group, mesh):
            _give(taken, x.shape, axis, i, mesh)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(a or None for a in taken)))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch: their first dimension over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(present(ROWS, mesh)))


def row_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Into how many parts the rows of a batch are divided."""
    return extent(ROWS, mesh)


def mesh_axes(sizes: tuple[int, int, int]) -> dict[str, int]:
    """The axes of a mesh whose recipe says ``sizes`` (data, fsdp, tensor), the slowest first."""
    data, fsdp, tensor = sizes
    if fsdp <= LONG:
        return {DATA: data, FSDP: fsdp, TENSOR: tensor}
    first = next(n for n in range(RING, 0, -1) if fsdp % n == 0)
    return {DATA: data, FSDP: first, FSDP2: fsdp // first, TENSOR: tensor}


def mesh_sizes_of(mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[int, int, int]:
    """(data, fsdp, tensor) of a mesh, as a recipe says them."""
    return extent(DATA, mesh), extent(SHARDS, mesh), extent(TENSOR, mesh)


def make_mesh(sizes: tuple[int, int, int], devices: Any = None) -> Mesh:
    """The mesh of these sizes (data, fsdp, tensor) over all devices of all processes (or ``devices``)."""
    axes = mesh_axes(sizes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def sum_in_steps(layer: Any) -> Any:
    """One layer's parameters as they are; where ``fsdp`` is two axes, their gradients are summed over the first, each
    device keeping its part, and then over the second."""
    mesh = jax.sharding.get_abstract_mesh()
    if FSDP2 not in mesh.shape:
        return layer

    def mark(path: tuple[Any, ...], leaf: Any) -> Any:
        return _summed_in_steps(leaf, place(f"encoder/layers/{_name(path)}", leaf.shape, mesh).spec)

    return jax.tree_util.tree_map_with_path(mark, layer)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _summed_in_steps(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
    return leaf


def _summed_forward(leaf: jax.Array, spec: PartitionSpec) -> tuple[jax.Array, None]:
    return leaf, None


def _summed_backward(spec: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    mesh = jax.sharding.get_abstract_mesh()
    first = [tuple(axis for axis in present(axes, mesh) if axis != FSDP2) for axes in spec]
    gradient = jax.lax.with_sharding_constraint(gradient, PartitionSpec(*(axes or None for axes in first)))
    return (jax.lax.with_sharding_constraint(gradient, spec),)


_summed_in_steps.defvjp(_summed_forward, _summed_backward)
