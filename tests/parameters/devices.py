"""Devices that are only described: GPUs of several hosts, chips of several TPU slices."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """What is asked of a JAX device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


@dataclasses.dataclass(frozen=True)
class Chip(Device):
    """A chip of a v5e slice: ``coords`` in its torus."""

    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def gpus(nodes: int, each: int, *, per_process: int) -> list[Device]:
    """GPUs of several hosts, in the order of their processes."""
    return [Device(i, i // per_process, i // each) for i in range(nodes * each)]


def chips(slices: int) -> list[Device]:
    """v5e-16 slices: four hosts of 2x2 chips each."""
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    return [
        Chip(100_000 * s + i, 4 * s + 2 * (y // 2) + x // 2, s, coords=(x, y, z))
        for s in range(slices)
        for i, (x, y, z) in enumerate(places)
    ]
