"""Which physical links a mesh axis uses: those along the sides of the TPU slice in which its devices differ.

A side that is a ring of chips sends in both directions at the same time. A side that is a line carries a collective at
the rate of one link, since everything that reaches an end of the line comes over one link. An axis over several sides
has the links of all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.planning.chips import Chip


@dataclasses.dataclass(frozen=True)
class Links:
    """The sides of a slice that each mesh axis runs along.

    shape: chips per side of the slice, empty for devices without coordinates.
    sides: mesh axis -> (side, chips of it that the axis spans) for every side along which its devices differ.
    """

    shape: tuple[int, ...]
    sides: Mapping[str, tuple[tuple[int, int], ...]]

    def ways(self, axes: Sequence[str], chip: Chip) -> float:
        """Links of ``chip`` that a device can send into at the same time along ``axes``.

        1 for a GPU, whose links are counted together, and for unknown ``axes``; infinite if the devices share a chip.
        """
        if not axes or not self.shape or not chip.wraps:
            return 1.0
        # A slice of a 3-D generation is a torus in all dimensions or in none.
        rings = [extent % chip.wraps == 0 for extent in self.shape]
        closed = all(rings) if chip.ports == 6 else None
        total = 0.0
        for side, span in {crossed for axis in axes for crossed in self.sides[axis]}:
            ring = self.shape[side] % chip.wraps == 0 if closed is None else closed
            total += 2.0 if ring and span == self.shape[side] else 1.0
        return total or float("inf")


def mesh_links(mesh: Any) -> Links:
    """The links of each axis of ``mesh``, from the coordinates of its devices."""
    devices = mesh.devices
    names = tuple(mesh.axis_names)
    if not hasattr(devices.flat[0], "coords"):
        return Links((), dict.fromkeys(names, ()))
    coords = np.array([d.coords for d in devices.flat]).reshape(*devices.shape, -1)
    shape = tuple(int(n) for n in coords.reshape(-1, coords.shape[-1]).max(axis=0) + 1)
    sides = {}
    for axis, name in enumerate(names):
        rows = np.moveaxis(coords, axis, 0).reshape(devices.shape[axis], -1, coords.shape[-1])
        spans = [max(len(np.unique(rows[:, row, side])) for row in range(rows.shape[1])) for side in range(len(shape))]
        crossed = tuple((side, span) for side, span in enumerate(spans) if span > 1)
        if math.prod(span for _, span in crossed) > devices.shape[axis]:
            crossed = crossed[:1]  # a diagonal axis steps along several sides at once: count the links of one
        sides[name] = crossed
    return Links(shape, sides)
