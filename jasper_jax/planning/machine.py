"""GPUs of one kind, ``8xh100``, for which a step is estimated: no compiler of theirs runs without them.

State is exact: it follows from the shardings. Temporaries and operations are those of the same program as XLA makes it
for as many simulated devices of the processor, where bfloat16 is computed in float32: more than a GPU needs.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from jasper_jax.planning.chips import GPUS, Chip
from jasper_jax.planning.topology import Topology
from jasper_jax.runtime.errors import UserError

_FLAG = "--xla_force_host_platform_device_count"


@dataclasses.dataclass(frozen=True)
class Machine:
    """``devices`` GPUs of one kind."""

    chip: Chip
    devices: int

    @property
    def chips(self) -> int:
        return self.devices

    def __str__(self) -> str:
        return f"{self.devices}x{self.chip.name}"

    def mesh(self, sizes: tuple[int, int, int]) -> Any:
        """A mesh of simulated devices; :func:`simulate` has to come before JAX looks for devices."""
        import jax

        from jasper_jax.parameters.sharding import make_mesh

        devices = jax.devices("cpu")
        if len(devices) < self.devices:
            raise UserError(
                f"topology: {self}: JAX simulates {len(devices)} devices in this process; set XLA_FLAGS={_FLAG}="
                f"{self.devices} before it starts"
            )
        return make_mesh(sizes, devices[: self.devices])


def parse_target(text: str) -> Topology | Machine:
    """``v5e:4x4`` or ``8xh100`` -> what to plan for.

    Raises:
      UserError: it is neither.
    """
    match = re.fullmatch(r"(\d+)x([a-z][a-z0-9-]*)", text.strip().lower())
    if match is None:
        return Topology.parse(text)
    count, name = int(match[1]), match[2]
    if name not in GPUS:
        raise UserError(f"topology: {text!r}: {name} is no GPU that is known; GPUs are {', '.join(GPUS)}")
    if not 0 < count <= 4096:
        raise UserError(f"topology: {text!r}: 1 to 4096 GPUs are allowed")
    return Machine(GPUS[name], count)


def simulate(targets: Sequence[Topology | Machine]) -> None:
    """Have JAX show as many devices of the processor as the largest of the machines has."""
    most = max((target.devices for target in targets if isinstance(target, Machine)), default=0)
    flags = os.environ.get("XLA_FLAGS", "")
    if most > 1 and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}={most}".strip()
