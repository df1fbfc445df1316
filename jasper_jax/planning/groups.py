"""Which devices exchange data in a collective, and along which axes of the mesh.

XLA writes replica groups as lists ``{{0,1},{2,3}}``, as a reshaped and transposed range ``[4,2]<=[2,4]T(1,0)``, or as
axes of a mesh of its own ``mesh['a'=4,'b'=2] {'a'}``. The numbers are partitions; partition i runs on the i-th device
of the program's mesh in row-major order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from jasper_jax.planning.hlo import Instruction

_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


def device_groups(instruction: Instruction, devices: int) -> np.ndarray | None:
    """Groups of devices that exchange data, ``[groups, devices of a group]``; (source, target) pairs of a permutation.

    ``devices``: their number. None if the text has an unknown form.
    """
    pairs = instruction.attribute("source_target_pairs")
    if pairs is not None:
        return np.array(_numbers(pairs), dtype=int).reshape(-1, 2)
    text = _replica_groups(instruction.attributes)
    if text is None or text == "{}":
        return np.arange(devices).reshape(1, -1)
    if text.startswith("{"):
        rows = [_numbers(row) for row in re.findall(r"\{([\d, ]+)\}", text)]
        return np.array(rows, dtype=int) if rows and len({len(row) for row in rows}) == 1 else None
    if text.startswith("mesh"):
        return _mesh_groups(text)
    iota = _IOTA.fullmatch(text)
    return None if iota is None else _transposed_range(iota[2], iota[3]).reshape(_numbers(iota[1]))


def _replica_groups(attributes: str) -> str | None:
    match = re.search(r"replica_groups=(mesh\[[^\]]*\][^{]*\{[^}]*\}|\{\{.*?\}\}|\{\}|\[[^ ]*)", attributes)
    return None if match is None else match[1].rstrip(",")


def _transposed_range(sizes: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... reshaped to ``sizes``, transposed to ``order``, flattened."""
    dims = _numbers(sizes)
    numbers = np.arange(math.prod(dims)).reshape(dims)
    return (numbers.transpose(_numbers(order)) if order else numbers).ravel()


def _mesh_groups(text: str) -> np.ndarray | None:
    """Parse ``mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a','b':(1)2}``: groups along axes or parts of axes.

    ``device_ids``: the devices in the order of that mesh, as a transposed range or a list; by default 0, 1, 2, ...
    """
    match = re.fullmatch(r"mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", text)
    if match is None:
        return None
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    devices = np.arange(math.prod(axes.values()))
    if "device_ids" in match[2]:
        order = re.search(r"device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d, ]+))\)", match[2])
        if order is None:
            return None
        devices = np.array(_numbers(order[3])) if order[3] else _transposed_range(order[1], order[2])
    if devices.size != math.prod(axes.values()):
        return None
    chosen = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[3])
    # An axis of which a part is chosen, (before)size, is split into (before, size, rest).
    sizes, picked = [], []
    for name, size in axes.items():
        part = next(((before, width) for axis, before, width in chosen if axis == name), None)
        if part is None:
            sizes.append(size)
        elif not part[0]:
            picked.append(len(sizes))
            sizes.append(size)
        else:
            before, width = int(part[0]), int(part[1])
            picked.append(len(sizes) + 1)
            sizes += [before, width, size // before // width]
    kept = [axis for axis in range(len(sizes)) if axis not in picked]
    group = math.prod(sizes[axis] for axis in picked)
    return devices.reshape(sizes).transpose([*kept, *picked]).reshape(-1, group)


def crossed_axes(groups: np.ndarray, sizes: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    """Mesh axes (``names`` of ``sizes``) along which the devices of a group differ; empty for groups of one device."""
    places = np.stack(np.unravel_index(groups, tuple(sizes)), axis=-1)  # [groups, members, axes]
    differs = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, moves in zip(names, differs) if moves)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
