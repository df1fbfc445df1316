"""What a plan is for: a TPU slice, ``v5e:4x4``, or several, ``2xv5e:4x4``; GPUs of one kind in one node, ``8xh100``,
or in several, ``2x8xh100``."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from jasper_jax.planning.chips import GPUS, Chip
from jasper_jax.planning.gpu import COMPILER_OPTIONS, gpu_devices
from jasper_jax.planning.topology import Topology, refuse_without_network
from jasper_jax.runtime.errors import UserError

FRACTION = "XLA_CLIENT_MEM_FRACTION"
DEFAULT_FRACTION = 0.75
"""The share of a GPU's memory that JAX takes (docs.jax.dev, "GPU memory allocation")."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """``devices`` GPUs of one kind in ``nodes`` equal nodes. ``fraction``: the share of a card's memory that JAX may
    take."""

    card: Chip
    devices: int
    fraction: float = DEFAULT_FRACTION
    nodes: int = 1
    platform = "gpu"
    compiler_options = COMPILER_OPTIONS

    @property
    def chip(self) -> Chip:
        """The card, with the memory that JAX may take of it."""
        return dataclasses.replace(self.card, usable_memory=int(self.fraction * self.card.usable_memory))

    @property
    def chips(self) -> int:
        """Chips that are paid for."""
        return self.devices

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.devices // self.nodes}x{self.card.name}"

    def mesh(self, sizes: tuple[int, int, int]) -> Any:
        """A mesh (data, fsdp, tensor) over the GPUs. UserError: as :func:`gpu_devices`."""
        from jasper_jax.parameters.sharding import make_mesh

        return make_mesh(sizes, gpu_devices(self.card, self.devices, self.nodes))


Target = Topology | Machine


def parse_target(text: str) -> Target:
    """Parse ``v5e:4x4``, ``2xv5e:4x4``, ``8xh100`` or ``2x8xh100``.

    Raises:
      UserError: the text is neither, or names an unknown chip, shape or number.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)x([a-z][a-z0-9-]*)", text.strip().lower())
    if match is None:
        return Topology.parse(text)
    nodes, count, name = int(match[1] or 1), int(match[2]), match[3]
    if name not in GPUS:
        raise UserError(f"topology: {text!r}: {name} is not a known GPU; GPUs are {', '.join(GPUS)}")
    if not 0 < nodes * count <= 4096:
        raise UserError(f"topology: {text!r}: expected 1 to 4096 GPUs, got {nodes * count}")
    refuse_without_network(text, GPUS[name], nodes)
    return Machine(GPUS[name], nodes * count, memory_fraction(), nodes)


def memory_fraction() -> float:
    """The share of a GPU's memory that JAX will take: ``XLA_CLIENT_MEM_FRACTION``, or its default.

    Raises:
      UserError: the variable is not a number above 0.
    """
    text = os.environ.get(FRACTION, "") or str(DEFAULT_FRACTION)
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"{FRACTION}: {text!r} is not a share of the memory; expected a number above 0, at most 1")
    return fraction
