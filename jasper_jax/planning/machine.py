"""What a plan is for: a TPU slice, ``v5e:4x4``, or GPUs of one kind, ``8xh100``.

A step for GPUs is only estimated, since XLA cannot compile for GPUs that are not there. Its state is exact, because it
follows from the shardings. Temporaries and operations are those of the same program compiled for as many simulated CPU
devices, which compute bfloat16 in float32: more than a GPU needs.
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
    platform = "gpu"

    @property
    def chips(self) -> int:
        """Chips that are paid for."""
        return self.devices

    def __str__(self) -> str:
        return f"{self.devices}x{self.chip.name}"

    def mesh(self, sizes: tuple[int, int, int]) -> Any:
        """A mesh (data, fsdp, tensor) of simulated devices; :func:`simulate` must run before JAX finds its devices.

        Raises:
          UserError: JAX simulates fewer devices than the machine has.
        """
        import jax

        from jasper_jax.parameters.sharding import make_mesh

        devices = jax.devices("cpu")
        if len(devices) < self.devices:
            raise UserError(
                f"topology: {self}: JAX simulates {len(devices)} devices in this process; set XLA_FLAGS={_FLAG}="
                f"{self.devices} before it starts"
            )
        return make_mesh(sizes, devices[: self.devices])


Target = Topology | Machine


def parse_target(text: str) -> Target:
    """Parse ``v5e:4x4`` or ``8xh100``.

    Raises:
      UserError: the text is neither, or names an unknown chip, shape or number.
    """
    match = re.fullmatch(r"(\d+)x([a-z][a-z0-9-]*)", text.strip().lower())
    if match is None:
        return Topology.parse(text)
    count, name = int(match[1]), match[2]
    if name not in GPUS:
        raise UserError(f"topology: {text!r}: {name} is not a known GPU; GPUs are {', '.join(GPUS)}")
    if not 0 < count <= 4096:
        raise UserError(f"topology: {text!r}: expected 1 to 4096 GPUs, got {count}")
    return Machine(GPUS[name], count)


def simulate(targets: Sequence[Target]) -> None:
    """Make JAX simulate as many CPU devices as the largest GPU machine has, unless ``XLA_FLAGS`` already says."""
    count = max((target.devices for target in targets if isinstance(target, Machine)), default=0)
    flags = os.environ.get("XLA_FLAGS", "")
    if count > 1 and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}={count}".strip()
