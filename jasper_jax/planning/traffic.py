"""Bytes that a program reads from and writes to the device's main memory, from its text.

An instruction outside fusions reads its operands and writes its result; inside a fusion nothing is written. Arrays in
on-chip memory (memory space 1 of a TPU) and instructions that only rename an array cost nothing. A fusion that slices
an operand reads the slice, and one that updates a slice in place writes the slice: otherwise a scan over stacked layers
would seem to read every layer in every iteration. This is a lower bound: it leaves out tile padding, and the repeated
reads of an operand in a large matrix product.
"""

from __future__ import annotations

from jasper_jax.planning.collectives import in_flight
from jasper_jax.planning.hlo import Computation, Instruction, Module, Shape, leaves_of

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("opt-barrier", "optimization-barrier", "partition-id", "replica-id", "async-start", "async-update", "async-done"),
    "add-dependency",
}
"""Instructions that move no bytes themselves."""

BOOKKEEPING = {
    *("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone", "Sharding"),
    *("AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked", "ZeroCrop"),
}
"""Custom calls for the TPU compiler's own use: no work, no traffic."""

SLICES = {"dynamic-slice", "slice", "gather"}


def moved_bytes(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Bytes that one execution of ``instruction``, outside fusions, reads from and writes to main memory."""
    if instruction.opcode in FREE or instruction.opcode.endswith("-done") or target(instruction) in BOOKKEEPING:
        return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")[0]]
        read = sum(
            _read(inner, parameter, module) if _in_memory(operand) else 0
            for parameter, operand in zip(inner.parameters, operands)
        )
        return read + _written(inner, instruction.shapes, module)
    if instruction.opcode in ("copy-start", "slice-start"):
        source = operands[0].shapes[0]
        made = (
            instruction.shapes[0]
            if instruction.opcode == "copy-start"
            else instruction.shapes[-2 if len(instruction.shapes) > 2 else -1]
        )
        size = min(source.bytes, made.bytes)
        return size * ((source.space == 0) + (made.space == 0))
    if instruction.opcode in SLICES:
        return (_in_memory(operands[0]) + 1) * _main(instruction.shapes) + sum(_main(o.shapes) for o in operands[1:])
    if instruction.opcode == "dynamic-update-slice":
        update = operands[1]
        return _main(update.shapes) + (update.shapes[0].bytes if instruction.shapes[0].space == 0 else 0)
    if instruction.opcode == "scatter":
        updates = operands[-1].shapes[0].bytes
        return 3 * updates * _in_memory(instruction) + sum(_main(o.shapes) for o in operands[1:-1])
    if instruction.opcode.endswith("-start"):  # a collective, whose start returns its operand too
        return max(_main(instruction.shapes), sum(_main(o.shapes) for o in operands))
    made = instruction.shapes
    if target(instruction) and len(made) > 1 and made[-1].dtype in ("s8", "u8"):
        made = made[:-1]  # a GPU library's scratch memory, of which the call uses what it needs
    return sum(_main(o.shapes) for o in operands) + _main(made)


def target(instruction: Instruction) -> str | None:
    """The target of a custom call; None for another instruction."""
    return (
        (instruction.attribute("custom_call_target") or "").strip('"') if instruction.opcode == "custom-call" else None
    )


def _main(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.space == 0)


def _in_memory(instruction: Instruction) -> bool:
    return any(shape.space == 0 for shape in instruction.shapes)


def _read(computation: Computation, instruction: Instruction, module: Module) -> int:
    """Bytes that a fused computation reads of ``instruction``, which is a parameter or a bitcast of one."""
    whole = sum(shape.bytes for shape in instruction.shapes)
    read = 0
    for user in computation.users[instruction.name]:
        first = bool(user.operands) and user.operands[0] == instruction.name
        if user.opcode == "tuple" and user.root:
            continue  # returned unchanged
        if user.opcode in SLICES and first and instruction.name not in user.operands[1:]:
            read += user.shapes[0].bytes
        elif user.opcode == "dynamic-update-slice" and first and instruction.name not in user.operands[1:]:
            continue  # updated in place
        elif user.opcode == "bitcast":
            read += _read(computation, user, module)
        elif user.opcode == "fusion":
            inner = module.computations[user.called("calls")[0]]
            for parameter, name in zip(inner.parameters, user.operands):
                if name == instruction.name:
                    renamed = _unrenamed(inner.root, inner) is parameter
                    read += _read(computation, user, module) if renamed else _read(inner, parameter, module)
        elif _repetition(user, computation):
            continue
        else:
            return whole
    return min(read, whole)


def _unrenamed(instruction: Instruction, computation: Computation) -> Instruction:
    """The instruction that ``instruction`` is a bitcast of, or itself."""
    while instruction.opcode == "bitcast":
        instruction = computation.operand(instruction, 0)
    return instruction


def _written(inner: Computation, shapes: tuple[Shape, ...], module: Module) -> int:
    """Bytes that a fusion with results of ``shapes`` writes."""
    parts = list(leaves_of(inner.root, inner))
    if len(parts) != len(shapes):
        # One instruction makes the whole tuple; the first two elements of a chain's start are its operand and result.
        return _main(shapes[:2]) if target(inner.root) in BOOKKEEPING else _main(shapes)
    return sum(_part(part, inner, shape, module) for part, shape in zip(parts, shapes))


def _part(part: Instruction, computation: Computation, shape: Shape, module: Module) -> int:
    part = _unrenamed(part, computation)
    if shape.space != 0 or part.opcode == "parameter" or _repetition(part, computation) or target(part) in BOOKKEEPING:
        return 0
    if part.opcode == "dynamic-update-slice":
        return computation.operand(part, 1).shapes[0].bytes
    if part.opcode == "fusion":
        inner = module.computations[part.called("calls")[0]]
        if inner.root.opcode != "tuple":
            return _part(inner.root, inner, shape, module)
    return shape.bytes


def _repetition(instruction: Instruction, computation: Computation) -> bool:
    """Whether ``instruction`` only continues a collective that an earlier fusion of its chain started."""
    if target(instruction) in BOOKKEEPING:
        return True
    started = any("AsyncCollectiveStart" in user.attributes for user in computation.users[instruction.name])
    return in_flight(instruction) and not started
