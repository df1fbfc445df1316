"""The least time that a step can take on a chip: its work over the chip's published peak rates.

There are four lower bounds: matrix operations over peak operations, traffic over memory bandwidth, bytes sent inside a
node over link bandwidth, and bytes sent between nodes over the network's rate; the step takes at least the largest of
them. A real step is slower: they overlap only in part;
matrix units reach their peak only for large, aligned products; element-wise work, sorts, tile padding and latency are
not counted; axes that share a link count as if each had it alone, and hops beyond a neighbour cost nothing; loading the
next batch, checkpoints and evaluation are not part of a step.

The likely time is a guess from the same program: kernels run one after another, each at the larger of its two floors
over ``REACHED``, with communication hidden behind them as far as it is shorter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jasper_jax.planning.chips import Chip
from jasper_jax.planning.work import Analysis

REACHED = 0.7
"""Share of the published rates that kernels are taken to reach: an assumption, not a measurement."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Lower bounds of one step, in seconds, and its memory on one device, in bytes.

    axis_seconds:         mesh axes that collectives use together -> seconds on their links.
    interconnect_seconds: of the busiest axis, inside a node.
    network_seconds:      between nodes.
    likely_seconds:       a guess at what a step will take, not a bound.
    bound_by:             the name of the largest bound: compute, memory, interconnect or network.
    """

    compute_seconds: float
    memory_seconds: float
    interconnect_seconds: float
    network_seconds: float
    axis_seconds: Mapping[tuple[str, ...], float]
    step_seconds: float
    likely_seconds: float
    bound_by: str
    texts_per_second: float
    needed_bytes: int
    usable_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the program fits into a device's memory."""
        return self.needed_bytes <= self.usable_bytes


def estimate(analysis: Analysis, chip: Chip, texts: int) -> Estimate:
    """The lower bounds of a step on ``chip`` that trains on ``texts`` texts, on all devices together."""
    device = chip.per_device
    axis_seconds = {
        axes: sent / (device.link_bandwidth * analysis.links.ways([a for a in axes if a != "?"], chip))
        for axes, sent in analysis.sent_bytes.items()
    }
    # Collectives along the same axis share its links; those along different axes may overlap.
    names = {name for axes in axis_seconds for name in axes}
    busiest = max((sum(s for axes, s in axis_seconds.items() if name in axes) for name in names), default=0.0)
    bounds = {
        "compute": analysis.bf16_flops / device.peak_flops,
        "memory": analysis.hbm_bytes / device.bandwidth,
        "interconnect": busiest,
        "network": analysis.between_bytes / device.network if analysis.between_bytes else 0.0,
    }
    bound_by = max(bounds, key=lambda name: bounds[name])
    seconds = bounds[bound_by]
    return Estimate(
        compute_seconds=bounds["compute"],
        memory_seconds=bounds["memory"],
        interconnect_seconds=busiest,
        network_seconds=bounds["network"],
        axis_seconds=axis_seconds,
        step_seconds=seconds,
        likely_seconds=max(seconds, analysis.serial_seconds / REACHED),
        bound_by=bound_by,
        texts_per_second=texts / seconds if seconds else float("inf"),
        needed_bytes=analysis.memory.peak,
        usable_bytes=device.usable_memory,
    )
