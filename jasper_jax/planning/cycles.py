"""The TPU compiler's own estimate of a program's time, in cycles of a chip.

The compiler writes ``estimated_cycles`` on the instructions whose loops it chooses: fusions, products, copies. It
writes none on sorts, scatters, hand-written kernels and collectives; all of these but the collectives are listed, for
the caller to count. Nothing is taken to overlap.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from jasper_jax.planning.hlo import Computation, Instruction, Module, parse_module
from jasper_jax.planning.loops import trip_count
from jasper_jax.planning.traffic import BOOKKEEPING, target

UNCOUNTED = ("sort", "scatter", "fusion", "custom-call")
"""Opcodes that are listed where they have no estimate."""


class Cycles(NamedTuple):
    """One execution of a program on one device.

    ``estimated``: cycles. ``uncounted``: name of an instruction without an estimate -> it, and how often it runs.
    ``unknown_loops``: loops of unknown length, which count as one iteration.
    """

    estimated: float
    uncounted: Mapping[str, tuple[Instruction, int]]
    unknown_loops: tuple[str, ...]


def estimated_cycles(text: str) -> Cycles:
    """Add up the estimates in ``text``, a program of the TPU compiler (``compiled.as_text()``). The body of a loop
    counts as often as it runs, and of a conditional the longest branch.

    Raises:
      ValueError: the text has an unknown form.
    """
    module = parse_module(text)
    return _cycles(module.entry, module, {})


def _cycles(computation: Computation, module: Module, done: dict[str, Cycles]) -> Cycles:
    if computation.name in done:
        return done[computation.name]
    total, uncounted, loops = 0.0, {}, []
    for instruction in computation.instructions.values():
        own = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if own:
            total += float(own[1])
        elif instruction.opcode in UNCOUNTED and target(instruction) not in BOOKKEEPING:
            uncounted[instruction.name] = instruction, 1
        times = trip_count(instruction, computation, module) if instruction.opcode == "while" else 1
        if times is None:
            loops.append(instruction.name)
        for inner in _inner(instruction, module, done):
            total += (times or 1) * inner.estimated
            uncounted |= {name: (of, (times or 1) * number) for name, (of, number) in inner.uncounted.items()}
            loops += inner.unknown_loops
    done[computation.name] = Cycles(total, uncounted, tuple(loops))
    return done[computation.name]


def _inner(instruction: Instruction, module: Module, done: dict[str, Cycles]) -> list[Cycles]:
    """The computations that one execution (of a loop: one iteration) runs; the estimate of a fusion is its own."""
    names = {
        "while": ("condition", "body"),
        "call": ("to_apply",),
        "conditional": ("true_computation", "false_computation", "branch_computations"),
    }.get(instruction.opcode, ())
    inner = [_cycles(module.computations[name], module, done) for name in instruction.called(*names)]
    return [max(inner, key=lambda branch: branch.estimated)] if instruction.opcode == "conditional" else inner
