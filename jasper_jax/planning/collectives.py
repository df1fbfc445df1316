"""Collectives of a program: their kind, payload, number of executions, mesh axes, and the bytes that leave a device.

Two forms of the TPU compiler are less obvious: a reduce-scatter is a fusion around an all-reduce and a slice, and a
collective that overlaps with matrix products appears in every fusion of its chain; only the first one is counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jasper_jax.planning.groups import crossed_axes, device_groups
from jasper_jax.planning.hlo import Computation, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
"""Also with ``-start``; ``ragged-all-to-all`` counts as all-to-all."""

UNKNOWN_AXES = ("?",)
"""The axes of a collective whose replica groups could not be parsed."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program's text.

    bytes:  payload on one device: the result of a gather, the operand of every other kind.
    sent:   bytes that leave a device in one execution on a ring of n devices: (n-1)/n of the payload, twice that for an
            all-reduce, all of it for a permutation.
    between: of them, those that cross to another node. Devices of a group that share a node divide the payload: with g
            nodes and m devices of each, (g-1)/g/m of it, twice that for an all-reduce.
    """

    kind: str
    bytes: int
    executions: float
    devices: int
    axes: tuple[str, ...]
    sent: float
    between: float = 0.0

    @property
    def total_sent(self) -> float:
        """Bytes that leave a device in all executions."""
        return self.sent * self.executions

    @property
    def inside(self) -> float:
        """Bytes that a device sends inside its node in one execution."""
        return max(0.0, self.sent - self.between)


def kind_of(instruction: Instruction, computation: Computation) -> str | None:
    """The kind of collective that starts with ``instruction``; None if it is none, or the continuation of one."""
    opcode = instruction.opcode.removesuffix("-start").removeprefix("ragged-")
    if opcode not in KINDS:
        return None
    if in_flight(instruction) and not starts_chain(instruction, computation):
        return None
    if opcode == "all-reduce" and "all-reduce-scatter" in computation.name:
        return "reduce-scatter"
    return opcode


def in_flight(instruction: Instruction) -> bool:
    """Whether ``instruction`` belongs to the chain of a collective that overlaps with other work."""
    return "chain_id=" in instruction.attributes


def starts_chain(instruction: Instruction, computation: Computation) -> bool:
    """Whether ``instruction`` is the first of its chain."""
    return any(
        user.opcode == "custom-call" and "AsyncCollectiveStart" in user.attributes
        for user in computation.users[instruction.name]
    )


def read_collective(
    kind: str,
    instruction: Instruction,
    computation: Computation,
    executions: float,
    sizes: Sequence[int],
    names: Sequence[str],
    nodes: np.ndarray | None = None,
) -> Collective:
    """The collective of ``instruction``. ``sizes``, ``names``: the axes of the mesh the program was compiled for;
    ``nodes``: the node of each of its devices, in row-major order (None: all in one)."""
    groups = device_groups(instruction, math.prod(sizes))
    members = 0 if groups is None else groups.shape[1]
    axes = UNKNOWN_AXES if groups is None else crossed_axes(groups, sizes, names)
    size = _payload(kind, instruction, computation)
    share = (members - 1) / members if members else 1.0
    if kind == "collective-permute":
        share = 1.0 if axes else 0.0
    times = 2 if kind == "all-reduce" else 1
    share_between = 0.0 if groups is None or nodes is None else crossing(kind, nodes[groups])
    return Collective(kind, size, executions, members, axes, size * share * times, size * share_between * times)


def crossing(kind: str, nodes: np.ndarray) -> float:
    """The share of its payload that a device sends to other nodes; ``nodes [groups, members]``."""
    most = max(len(set(group)) for group in nodes.tolist())
    if most == 1:
        return 0.0
    members = nodes.shape[1]
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    if kind == "all-to-all":
        return (most - 1) / most
    return (most - 1) / most / (members / most)


def _payload(kind: str, instruction: Instruction, computation: Computation) -> int:
    """Bytes of the larger side: the result of an all-gather, else the operands."""
    operand_bytes = sum(shape.bytes for name in instruction.operands for shape in computation.instructions[name].shapes)
    if kind != "all-gather":
        return operand_bytes
    result_bytes = sum(shape.bytes for shape in instruction.shapes)
    # The result of a start is a tuple of its operands and the gathered arrays.
    return result_bytes - operand_bytes if instruction.opcode.endswith("-start") else result_bytes
