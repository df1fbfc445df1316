"""The work of one execution of a compiled program on one device: operations, memory traffic, collectives, kernels.

XLA's own ``cost_analysis`` counts the body of a loop once; here every computation counts as often as it runs. Of a
conditional, the branch with the most operations counts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jasper_jax.parameters.nodes import node_of
from jasper_jax.planning.chips import Chip
from jasper_jax.planning.collectives import Collective, kind_of, read_collective
from jasper_jax.planning.flops import is_product, matmul_flops, passes
from jasper_jax.planning.hlo import Computation, Instruction, Module, parse_module
from jasper_jax.planning.kernels import Kernel, KernelFlops, known_flops, read_kernel
from jasper_jax.planning.links import Links, mesh_links
from jasper_jax.planning.loops import trip_count
from jasper_jax.planning.memory import Memory, program_memory
from jasper_jax.planning.traffic import moved_bytes


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One execution of a program on one device.

    flops:           operations of matrix products, convolutions and known kernels.
    bf16_flops:      the same in bfloat16 operations, of which one float32 operation at ``Precision.HIGHEST`` takes
                     several (``Chip.float32_cost``).
    hbm_bytes:       bytes read from and written to main memory.
    serial_seconds:  every kernel at the larger of its two floors, operations and traffic, one after another; 0 without
                     the rates of a chip.
    collectives:     one per collective of the program's text, with its number of executions.
    unknown_kernels: custom calls whose operations are unknown and not in ``flops``.
    unknown_loops:   names of the loops of unknown length, which count as one iteration.
    links:           the physical links of each mesh axis.
    """

    flops: float
    bf16_flops: float
    hbm_bytes: float
    serial_seconds: float
    collectives: tuple[Collective, ...]
    memory: Memory
    kernels: tuple[Kernel, ...]
    unknown_kernels: tuple[Kernel, ...]
    unknown_loops: tuple[str, ...]
    links: Links

    @property
    def between_bytes(self) -> float:
        """Bytes that a device sends to other nodes."""
        return sum(collective.between * collective.executions for collective in self.collectives)

    @property
    def sent_bytes(self) -> Mapping[tuple[str, ...], float]:
        """Axes -> bytes that a device sends along them inside its node."""
        sent: Counter[tuple[str, ...]] = Counter()
        for collective in self.collectives:
            if collective.axes:
                sent[collective.axes] += collective.inside * collective.executions  # pyright: ignore[reportArgumentType]
        return dict(sent)


def analyse(
    compiled: Any, mesh: Any, kernel_flops: KernelFlops = known_flops, *, device: Chip | None = None
) -> Analysis:
    """Count the work of ``compiled`` (of ``jax.jit(...).lower(...).compile()``) as it runs on one device of ``mesh``.

    ``kernel_flops``: called for every custom call; see ``jasper_jax.planning.kernels``. ``device``: a device's share of
    its chip; None counts float32 products as a TPU computes them.

    Raises:
      ValueError: the text of the program has an unknown form.
    """
    module = parse_module(compiled.as_text())
    work = _Counter(module, kernel_flops, device).work(module.entry, fused=False)
    sizes, names = tuple(mesh.shape.values()), tuple(mesh.axis_names)

    devices = list(mesh.devices.flat)
    nodes = np.array([node_of(device) for device in devices])

    def find(key: tuple[str, str]) -> tuple[Instruction, Computation]:
        computation = module.computations[key[0]]
        return computation.instructions[key[1]], computation

    collectives = []
    for key, executions in work.collectives.items():
        instruction, computation = find(key)
        kind = kind_of(instruction, computation)
        if kind is not None:
            collectives.append(read_collective(kind, instruction, computation, executions, sizes, names, nodes))
    kernels = []
    for key, executions in work.kernels.items():
        kernel = read_kernel(*find(key))
        if kernel is not None:
            kernels.append(dataclasses.replace(kernel, executions=executions))
    return Analysis(
        flops=work.flops,
        bf16_flops=work.bf16_flops,
        hbm_bytes=work.hbm_bytes,
        serial_seconds=work.serial_seconds,
        collectives=tuple(sorted(collectives, key=lambda c: -c.total_sent)),
        memory=program_memory(compiled),
        kernels=tuple(kernels),
        unknown_kernels=tuple(k for k in kernels if kernel_flops(k) is None),
        unknown_loops=tuple(dict.fromkeys(work.loops)),
        links=mesh_links(mesh),
    )


@dataclasses.dataclass
class _Work:
    flops: float = 0.0
    bf16_flops: float = 0.0
    hbm_bytes: float = 0.0
    serial_seconds: float = 0.0
    collectives: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    kernels: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: _Work, times: int = 1) -> None:
        self.flops += times * other.flops
        self.bf16_flops += times * other.bf16_flops
        self.hbm_bytes += times * other.hbm_bytes
        self.serial_seconds += times * other.serial_seconds
        for mine, theirs in ((self.collectives, other.collectives), (self.kernels, other.kernels)):
            for key, executions in theirs.items():
                mine[key] += times * executions
        self.loops += other.loops


class _Counter:
    """Counts each computation once and multiplies."""

    def __init__(self, module: Module, kernel_flops: KernelFlops, device: Chip | None):
        self.module = module
        self.kernel_flops = kernel_flops
        self.device = device
        self.float32_cost = device.float32_cost if device else 6.0
        self.done: dict[tuple[str, bool], _Work] = {}

    def work(self, computation: Computation, *, fused: bool) -> _Work:
        """The work of one execution of ``computation``; inside a fusion (``fused``) it moves no bytes."""
        key = (computation.name, fused)
        if key not in self.done:
            total = _Work()
            for instruction in computation.instructions.values():
                before = total.bf16_flops, total.hbm_bytes, total.serial_seconds
                self._count(instruction, computation, total, fused)
                if self.device and not fused and total.serial_seconds == before[2]:  # else it runs computations
                    compute = (total.bf16_flops - before[0]) / self.device.peak_flops
                    total.serial_seconds += max(compute, (total.hbm_bytes - before[1]) / self.device.bandwidth)
            self.done[key] = total
        return self.done[key]

    def _count(self, instruction: Instruction, computation: Computation, total: _Work, fused: bool) -> None:
        if not fused:
            total.hbm_bytes += moved_bytes(instruction, computation, self.module)
        if is_product(instruction):
            flops = matmul_flops(instruction, computation)
            total.flops += flops
            total.bf16_flops += flops * passes(instruction, computation, self.float32_cost)
        elif instruction.opcode == "while":
            times = trip_count(instruction, computation, self.module)
            if times is None:
                total.loops.append(instruction.op_name or instruction.name)
            for name in instruction.called("condition", "body"):
                total.add(self._named(name, fused), 1 if times is None else times)
        elif instruction.opcode == "conditional":
            branches = instruction.called("true_computation", "false_computation", "branch_computations")
            works = [self._named(name, fused) for name in branches]
            total.add(max(works, key=lambda work: (work.flops, work.hbm_bytes)))
        elif instruction.opcode == "custom-call":
            self._kernel(instruction, computation, total)
        elif kind_of(instruction, computation) is not None:
            total.collectives[computation.name, instruction.name] += 1
        elif instruction.opcode == "fusion":
            total.add(self._named(instruction.called("calls")[0], True))
        elif instruction.opcode == "call" or instruction.opcode.endswith("-start"):
            for name in instruction.called("to_apply", "calls"):
                total.add(self._named(name, fused))

    def _kernel(self, instruction: Instruction, computation: Computation, total: _Work) -> None:
        kernel = read_kernel(instruction, computation)
        if kernel is None:
            return
        total.kernels[computation.name, instruction.name] += 1
        flops = self.kernel_flops(kernel)
        if flops is not None:
            total.flops += flops
            total.bf16_flops += flops

    def _named(self, name: str, fused: bool) -> _Work:
        return self.work(self.module.computations[name], fused=fused)
