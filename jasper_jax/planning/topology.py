"""TPU slices by name: ``v5e:4x4``, or two of them, ``2xv5e:4x4`` -> the chip, the devices for the compiler, and a mesh
that follows their links.

No TPU is needed: libtpu, the TPU compiler, describes any slice and compiles for it. By default libtpu looks for a TPU
of this machine when it is loaded; ``prepare_compiler`` turns that off and must run before JAX finds its devices.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from jasper_jax.planning.chips import GPUS, TPUS, Chip
from jasper_jax.runtime.errors import UserError, first_line

EXTRA = "pip install 'jasper-jax[plan]'"

EXAMPLES = {
    "v4": ("2x2x1", "2x2x2", "4x4x4"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "4x4x4", "8x8x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "16x16"),
    "tpu7x": ("2x2x1", "2x2x2", "4x4x4"),
}
"""Some shapes of each generation, for error messages."""

PODS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}
"""Chips of the largest slice (cloud.google.com/tpu/docs, a page per generation); the compiler accepts larger ones."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """``nodes`` slices, each of ``shape`` chips of one generation."""

    chip: Chip
    shape: tuple[int, ...]
    nodes: int = 1
    platform = "tpu"
    compiler_options = None

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Parse ``generation:shape``, such as ``v5e:4x4``; several: ``2xv5e:4x4``. Does not load the compiler.

        Raises:
          UserError: another form, an unknown generation, or a shape that the generation does not have.
        """
        match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)+)", text.strip().lower())
        name = match[2] if match else text.partition(":")[0].strip().lower()
        if name not in TPUS:
            raise UserError(
                f"topology: {text!r} names no TPU that is known; expected generation:shape, e.g. v5e:4x4, of the"
                f" generations {', '.join(TPUS)}"
            )
        chip = TPUS[name]
        shape = tuple(map(int, match[3].split("x"))) if match else ()
        if reason := _refusal(chip, shape):
            raise UserError(f"topology: {text!r}: {reason}; shapes are, among others, {_examples(name)}")
        nodes = int(match[1] or 1) if match else 1
        if not 0 < nodes <= 64:
            raise UserError(f"topology: {text!r}: expected 1 to 64 slices, got {nodes}")
        refuse_without_network(text, chip, nodes)
        return cls(chip, shape, nodes)

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.slice_name}"

    @property
    def slice_name(self) -> str:
        """Of one slice, as libtpu knows it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.nodes * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """JAX devices of all slices; a mesh must have exactly as many."""
        return self.chips * self.chip.devices_per_chip

    def mesh(self, sizes: tuple[int, int, int]) -> Any:
        """A mesh (data, fsdp, tensor) over the slice; see :func:`topology_mesh`."""
        from jasper_jax.parameters.sharding import AXES

        return topology_mesh(self, dict(zip(AXES, sizes)))


def refuse_without_network(text: str, chip: Chip, nodes: int) -> None:
    """UserError: several nodes of a chip for which no rate between nodes is published."""
    if nodes > 1 and not chip.network:
        known = ", ".join(one.name for one in (*TPUS.values(), *GPUS.values()) if one.network)
        raise UserError(
            f"topology: {text!r}: no network rate of {chip.name} between nodes is published; plan one node of it, or"
            f" several of {known}"
        )


def _refusal(chip: Chip, shape: tuple[int, ...]) -> str:
    """Why no slice has this shape, or an empty string. The compiler takes whole hosts of 2x2 chips, or a single chip
    as a host of its own."""
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
    """The slice's devices: programs can be compiled for them, but they hold no arrays.

    Raises:
      UserError: the TPU compiler is not installed, or rejects the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology: {topology} needs the TPU compiler, libtpu, which is not installed: {EXTRA}")
    prepare_compiler()
    import jax
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.nodes} if topology.nodes > 1 else {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # otherwise each of the two cores is a device, unlike on a v4 VM
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **options)
    except jax.errors.JaxRuntimeError as e:
        raise UserError(f"topology: {topology} is refused by the TPU compiler: {first_line(e)}") from e
    if len(description.devices) != topology.devices:
        raise AssertionError(f"{topology}: expected {topology.devices} devices, got {len(description.devices)}")
    return list(description.devices)


def prepare_compiler() -> None:
    """Set the environment variables that libtpu needs on a machine without a TPU; the user's own values win.

    Called after JAX has found its devices this still works, but by then libtpu may have waited for a metadata server
    and printed errors.
    """
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # outside the cloud there is no metadata server: minutes of retries
        "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # any valid type will do: programs use the described topology
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a plan holds no device, so several processes may plan at once
    }.items():
        os.environ.setdefault(name, value)


def topology_mesh(topology: Topology, axes: Mapping[str, int]) -> Any:
    """A mesh over the slice. ``axes``: name -> size, the axis that communicates least first, e.g.
    ``{"data": 1, "fsdp": 8, "tensor": 2}``.

    Neighbouring chips go to the last axis first; an axis may take a part of a side of the torus or several sides.

    Raises:
      UserError: the product of the sizes is not the number of devices; also as ``topology_devices``.
    """
    if math.prod(axes.values()) != topology.devices:
        sizes = " x ".join(f"{name} {size}" for name, size in axes.items())
        raise UserError(f"mesh: {sizes} = {math.prod(axes.values())}, but {topology} has {topology.devices} devices")
    from jasper_jax.parameters.sharding import mesh_over

    return mesh_over(axes, topology_devices(topology))
