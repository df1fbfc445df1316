"""The least time that a step can take on a chip: its work over the chip's published peak rates.

Three floors: matrix operations over peak operations, traffic over memory bandwidth, bytes sent over link bandwidth;
the step takes at least the largest. What is left out makes a real step slower: the three overlap only in part; matrix
units reach their peak only for large, aligned products; element-wise work, sorts, padding of tiles and latency are not
counted; axes that share a link are taken to have it each to itself, and every hop beyond a neighbour is free; reading
the next batch, checkpoints and evaluation are not part of a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jasper_jax.planning.chips import Chip
from jasper_jax.planning.work import Analysis


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Floors in seconds of one step. ``axis_seconds``: mesh axes, as collectives use them together -> seconds on their
    links; ``interconnect_seconds`` is that of the busiest axis."""

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float
    axis_seconds: Mapping[tuple[str, ...], float]
    step_seconds: float
    bound_by: str
    texts_per_second: float
    needed_bytes: int
    usable_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return self.needed_bytes <= self.usable_bytes


def estimate(analysis: Analysis, chip: Chip, texts: int) -> Estimate:
    """The floors of a step that trains on ``texts`` texts, all devices together."""
    device = chip.per_device
    axis_seconds = {
        axes: sent / (device.link_bandwidth * analysis.links.ways([a for a in axes if a != "?"], chip))
        for axes, sent in analysis.sent_bytes.items()
    }
    # Collectives along the same axis share its links; those along different axes may run at the same time.
    names = {name for axes in axis_seconds for name in axes}
    busiest = max((sum(s for axes, s in axis_seconds.items() if name in axes) for name in names), default=0.0)
    floors = {
        "compute": analysis.bf16_flops / device.peak_flops,
        "memory": analysis.hbm_bytes / device.bandwidth,
        "interconnect": busiest,
    }
    bound_by = max(floors, key=lambda name: floors[name])
    seconds = floors[bound_by]
    return Estimate(
        compute_seconds=floors["compute"],
        memory_seconds=floors["memory"],
        interconnect_seconds=busiest,
        axis_seconds=axis_seconds,
        step_seconds=seconds,
        bound_by=bound_by,
        texts_per_second=texts / seconds if seconds else float("inf"),
        needed_bytes=analysis.memory.peak,
        usable_bytes=device.usable_memory,
    )
