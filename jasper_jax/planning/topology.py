"""A described TPU slice: ``v5e:4x4`` -> its chip, its devices for the compiler, and a mesh laid over its links.

No TPU is needed: libtpu, the TPU compiler, describes any slice and compiles for it. It must be told not to look for
one: ``prepare_compiler`` does so, and a command that plans calls it before JAX looks for devices, which loads libtpu.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jasper_jax.planning.chips import TPUS, Chip
from jasper_jax.runtime.errors import UserError

EXTRA = "pip install 'jasper-jax[plan]'"

EXAMPLES = {
    "v4": ("2x2x1", "2x2x2", "4x4x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "4x4x4", "8x8x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "4x4x4"),
}
"""Shapes to name in a message; others exist."""

PODS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}
"""Chips of the largest machine (cloud.google.com/tpu/docs, a page per generation): the compiler would go further."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of ``shape`` chips of one generation."""

    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Topology:
        """``"v5e:4x4"`` -> the slice. Does not load the compiler.

        Raises:
          UserError: not of that form; no such generation; a shape that it cannot have.
        """
        match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", text.strip().lower())
        name = match[1] if match else text.partition(":")[0].strip().lower()
        if name not in TPUS:
            raise UserError(
                f"topology: {text!r} names no TPU that is known; write generation:shape, e.g. v5e:4x4; generations are"
                f" {', '.join(TPUS)}"
            )
        chip = TPUS[name]
        shape = tuple(map(int, match[2].split("x"))) if match else ()
        if reason := _refusal(chip, shape):
            raise UserError(f"topology: {text!r}: {reason}; shapes are, among others, {_examples(name)}")
        return cls(chip, shape)

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """What JAX sees: a mesh must have exactly as many."""
        return self.chips * self.chip.devices_per_chip

    @property
    def hosts(self) -> int:
        return math.ceil(self.chips / self.chip.chips_per_host)


def _refusal(chip: Chip, shape: tuple[int, ...]) -> str:
    """Why the shape cannot be, or an empty string. The compiler's own rule is whole hosts of 2x2 chips; a single chip
    is described as a host of its own."""
    dims = chip.ports // 2
    if len(shape) != dims:
        return f"{chip.name} slices have {dims} sides"
    if math.prod(shape) > PODS[chip.name]:
        return f"more than the {PODS[chip.name]:,} chips of a pod"
    if math.prod(shape) != 1 and (min(shape) < 1 or shape[0] % 2 or shape[1] % 2):
        return "the compiler takes whole hosts of 2x2 chips, so the first two sides are even"
    return ""


def _examples(name: str) -> str:
    return ", ".join(f"{name}:{shape}" for shape in EXAMPLES[name])


def topology_devices(topology: Topology) -> list[Any]:
    """Devices that a program can be compiled for; they hold no arrays.

    Raises:
      UserError: the TPU compiler is not installed, or refuses the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology: {topology} needs the TPU compiler, libtpu, which is not installed: {EXTRA}")
    prepare_compiler()
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # Else each of the two cores is a device, as no v4 VM runs them.
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=str(topology), **options)
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"topology: {topology} is refused by the TPU compiler: {str(e).splitlines()[0]}") from e
    if len(found.devices) != topology.devices:
        raise AssertionError(f"{topology}: {len(found.devices)} devices, {topology.devices} expected")
    return list(found.devices)


def prepare_compiler() -> None:
    """Set what libtpu reads when it is loaded on a machine without TPUs; what the user has set stands.

    Later than JAX's first look for devices it still works, but that look may wait for a metadata server and complain.
    """
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # Do not ask the cloud's metadata server, which is not there: minutes of retries.
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # Must be one that exists; the described topology is what counts.
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # No device is held: two plans, or a plan beside a run, may go on at once.
    }.items():
        os.environ.setdefault(name, value)


def topology_mesh(topology: Topology, axes: Mapping[str, int]) -> Any:
    """A mesh over the slice, ``axes`` from the least to the most talkative: ``{"data": 1, "fsdp": 8, "tensor": 2}``.

    The last axis gets neighbours on the links, then the one before it; an axis may take a part of a side or several
    sides (``mesh_utils.create_device_mesh``, which knows the torus).

    Raises:
      UserError: the sizes do not multiply to the devices of the slice; see also ``topology_devices``.
    """
    if math.prod(axes.values()) != topology.devices:
        sizes = " x ".join(f"{name} {size}" for name, size in axes.items())
        raise UserError(f"mesh: {sizes} = {math.prod(axes.values())}, but {topology} has {topology.devices} devices")
    from jax.experimental import mesh_utils
    from jax.sharding import AxisType, Mesh

    devices = topology_devices(topology)
    if len(devices) == 1:
        grid = np.array(devices).reshape(tuple(axes.values()))
    else:
        grid = mesh_utils.create_device_mesh(tuple(axes.values()), devices=devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
