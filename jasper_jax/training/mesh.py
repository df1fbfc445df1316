"""How parameters, optimizer state and batches are placed on the mesh of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jasper_jax.batches.loading import ProcessShare
from jasper_jax.parameters.sharding import like_leaves, row_sharding, row_shards, shardings


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A host array, the same in every process, as one array over the devices of all."""
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def put_params(params: Any, mesh: Mesh) -> Any:
    """A tree of parameters onto the mesh, by the rules of ``jasper_jax.parameters.sharding``."""
    return jax.tree.map(put, params, shardings(params, mesh))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of arrays or shapes and one of shardings -> shapes with shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def abstract_params(shapes: Any, mesh: Mesh) -> Any:
    """A tree of arrays or shapes -> shapes with shardings: what a checkpoint is restored onto."""
    return with_shardings(shapes, shardings(shapes, mesh))


def abstract_state(optimizer: optax.GradientTransformation, trained: Mapping[str, Any], mesh: Mesh) -> Any:
    """The optimizer's state for ``trained`` (a flat dict of arrays or shapes) as shapes with shardings."""
    state = jax.eval_shape(optimizer.init, trained)
    return with_shardings(state, like_leaves(state, shardings(trained, mesh), mesh))


def begin_state(optimizer: optax.GradientTransformation, trained: Mapping[str, Any], mesh: Mesh) -> Any:
    """The optimizer's state for ``trained``, created in place on the mesh."""
    placed = jax.tree.map(lambda x: x.sharding, abstract_state(optimizer, trained, mesh))
    return jax.jit(optimizer.init, out_shardings=placed)(trained)


def batch_shardings(batch: Any, mesh: Mesh, replicated: Sequence[str]) -> Any:
    """The arrays of a batch named in ``replicated`` on every device, the rows of the others over the devices."""
    rows, everywhere = row_sharding(mesh), NamedSharding(mesh, PartitionSpec())

    def find(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return everywhere if path[-1].key in replicated else rows

    return jax.tree_util.tree_map_with_path(find, batch)


def share_of(mesh: Mesh, process: int | None = None) -> ProcessShare:
    """The rows of a batch that the devices of ``process`` hold (default: this one), and no others: of a TPU host, whose
    chips are a part of a torus, they are not adjacent."""
    process = jax.process_index() if process is None else process
    parts = row_shards(mesh)
    held = row_sharding(mesh).devices_indices_map((parts,))
    starts = {index[0].start or 0 for device, index in held.items() if device.process_index == process}
    return ProcessShare(tuple(sorted(starts)), parts)


def put_batch(batch: Any, mesh: Mesh, share: ProcessShare, replicated: Sequence[str]) -> Any:
    """A loaded batch, of which this process has its ``share`` of the rows, as global arrays; ``replicated`` as in
    :func:`batch_shardings`."""

    def one(values: np.ndarray, placed: NamedSharding) -> jax.Array:
        if placed.spec == PartitionSpec():
            return put(values, placed)
        rows = len(values) * share.parts // len(share.pieces)

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            first = share.place_of(start, rows)
            return values[first : first + stop - start]

        return jax.make_array_from_callback((rows, *values.shape[1:]), placed, part)

    return jax.tree.map(one, batch, batch_shardings(batch, mesh, replicated))
