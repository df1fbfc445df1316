"""Nodes: groups of devices that are joined by fast links, with a slower network between the groups.

A node is a TPU slice, the GPUs of one host (or of one NVLink domain), or the devices of a CPU process. A mesh keeps
``tensor`` and as much of ``fsdp`` as possible inside a node, so that between nodes only gradients are summed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jasper_jax.runtime.errors import UserError


def node_of(device: Any) -> int:
    """The node of a JAX device: its ``slice_index``, which XLA sets to the slice of a TPU and the host of a GPU."""
    return device.process_index if _by_process(device) else getattr(device, "slice_index", 0)


def _by_process(device: Any) -> bool:
    """Whether a process's devices are a node: of CPUs, and of GPUs that are only described (``planning.gpu``), which
    have a process for each node and one slice. The TPUs of one slice that is only described have no ``slice_index``."""
    described = type(getattr(device, "client", None)).__name__ == "CompileOnlyPyClient"
    return device.platform == "cpu" or (device.platform != "tpu" and (described or not hasattr(device, "slice_index")))


def count_nodes(nodes: Sequence[int]) -> int:
    """The number of nodes; ``nodes[i]`` is that of device i. UserError: they differ in their number of devices."""
    sizes = Counter(nodes)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(str(sizes[node]) for node in sorted(sizes))
        raise UserError(f"mesh: nodes have {listed} devices; expected as many in each; start on equal nodes")
    return len(sizes)


def divide(axes: Sequence[int], per_node: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Each axis's devices inside a node, and its nodes; ``axes``: sizes, the one that communicates least first.

    The last axis takes as much of a node as it can, then the one before it. The product of ``axes`` is a multiple of
    ``per_node``.
    """
    inside: list[int] = []
    for size in reversed(axes):
        inside.insert(0, math.gcd(size, per_node))
        per_node //= inside[0]
    return tuple(inside), tuple(size // own for size, own in zip(axes, inside))


def device_grid(axes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """``devices`` as an array of shape ``axes``, in the order of the links: neighbours in the last axis are nearest.

    UserError: nodes differ in their number of devices.
    """
    from jax.experimental import mesh_utils

    if len(devices) == 1:
        return np.array(devices).reshape(tuple(axes))
    nodes = count_nodes([node_of(device) for device in devices])
    if nodes == 1:  # an axis may take a part of a side of a TPU's torus
        return mesh_utils.create_device_mesh(tuple(axes), devices, allow_split_physical_axes=True)
    inside, between = divide(axes, len(devices) // nodes)
    return mesh_utils.create_hybrid_device_mesh(
        inside,
        between,
        devices,
        process_is_granule=_by_process(devices[0]),
        allow_split_physical_axes=True,
    )
