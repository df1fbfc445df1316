"""The devices that an embedder uses: all of its process. Rows of packed texts are sharded over them; parameters are on
each, or sharded over as few as hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jasper_jax.parameters.sharding import make_mesh, place, row_sharding, shardings

_PARAMETERS = 0.6
"""The most of a device's memory that parameters take; the rest is for a batch."""


def mesh_sizes_for(param_bytes: int, devices: int, memory: int | None) -> tuple[int, int, int]:
    """(data, fsdp, tensor): the smallest ``fsdp`` at which a device's part of ``param_bytes`` is at most 60% of its
    free ``memory`` in bytes; all devices where none is enough. ``memory`` None: not known, so not sharded."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    fits = (d for d in divisors if memory is None or param_bytes / d <= _PARAMETERS * memory)
    fsdp = next(fits, devices)
    return devices // fsdp, fsdp, 1


def local_mesh(param_bytes: int, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of an embedder with parameters of ``param_bytes``, over ``devices`` (default: this process's)."""
    devices = list(jax.local_devices() if devices is None else devices)
    return make_mesh(mesh_sizes_for(param_bytes, len(devices), _free(devices)), devices)


def _free(devices: Sequence[Any]) -> int | None:
    """Free bytes of the fullest device; None where JAX does not say (CPU)."""
    stats = [device.memory_stats() for device in devices]
    return min((s["bytes_limit"] - s.get("bytes_in_use", 0) for s in stats if s and "bytes_limit" in s), default=None)


def put_params(params: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Parameters by group (``encoder``, ``vision``, ...) onto the mesh by the rules of ``parameters.sharding``, of host
    arrays or JAX arrays. Those that are there already are not copied."""
    return jax.device_put(dict(params), shardings(dict(params), mesh), may_alias=True)


def put_leaf(name: str, leaf: np.ndarray, mesh: Mesh) -> jax.Array:
    """The leaf ``name`` (``encoder/layers/...``) onto the mesh."""
    return jax.device_put(leaf, NamedSharding(mesh, place(name, leaf.shape, mesh).spec), may_alias=True)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays onto every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=True)


def put_rows(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Arrays ``[R, ...]`` with their rows sharded over the mesh, which has to divide R."""
    return jax.device_put(dict(rows), row_sharding(mesh))
