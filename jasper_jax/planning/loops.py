"""How often the body of a while loop runs.

XLA writes the number on some backends (``known_trip_count``), but not on TPUs. Otherwise it follows from three facts:
the condition compares a counter with a constant, the body adds a constant to that counter, and the counter starts at a
constant. Values are traced through tuples, copies and fusions as *counter + offset*.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from jasper_jax.planning.hlo import Computation, Instruction, Module

TRANSPARENT = {"copy", "copy-start", "copy-done", "bitcast", "convert", "reshape", "broadcast", "optimization-barrier"}
"""Instructions whose result is a scalar operand, unchanged."""

FLIPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "EQ": "EQ", "NE": "NE"}


@dataclasses.dataclass(frozen=True)
class Linear:
    """``element of the loop's tuple + offset``; a constant if ``element`` is None."""

    element: int | None
    offset: int


def trip_count(loop: Instruction, caller: Computation, module: Module) -> int | None:
    """How often the body of ``loop`` runs; None if that depends on data, or on code of an unknown form."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.called("condition")[0]]
    body = module.computations[loop.called("body")[0]]
    test = _comparison(condition, module)
    if test is None:
        return None
    direction, left, right = test
    if left.element is None or _carried(left.element, body, module):  # the counter is on the right
        direction, left, right = FLIPPED[direction], right, left
    if left.element is None:
        return None
    entering = _tuple_part(caller.operand(loop, 0), left.element, caller, module, _no_parameters)
    after = _tuple_part(body.root, left.element, body, module, _loop_tuple)
    limit = right
    if right.element is not None:  # a limit that the loop carries unchanged
        if not _carried(right.element, body, module):
            return None
        outside = _tuple_part(caller.operand(loop, 0), right.element, caller, module, _no_parameters)
        limit = None if outside is None else Linear(outside.element, outside.offset + right.offset)
    if entering is None or after is None or limit is None or after.element != left.element:
        return None
    if entering.element is not None or limit.element is not None:
        return None
    return _count(direction, entering.offset + left.offset, limit.offset, after.offset)


def _carried(element: int, body: Computation, module: Module) -> bool:
    """Whether the body leaves the element unchanged."""
    return _tuple_part(body.root, element, body, module, _loop_tuple) == Linear(element, 0)


def _count(direction: str, start: int, limit: int, step: int) -> int | None:
    """Number of values ``start, start + step, ...`` for which ``value direction limit`` holds; None if unknown."""
    if direction in ("GT", "GE"):
        direction, start, limit, step = FLIPPED[direction], -start, -limit, -step
    if direction == "LE":
        direction, limit = "LT", limit + 1
    if direction == "NE" and step and (limit - start) % step == 0 and (limit - start) // step >= 0:
        return (limit - start) // step
    if direction != "LT" or step <= 0:
        return None
    return max(0, math.ceil((limit - start) / step))


Parameters = Callable[[Instruction, int | None], Linear | None]
"""(parameter, element of it or None) -> its value, or None if unknown."""


def _no_parameters(parameter: Instruction, element: int | None) -> Linear | None:
    return None


def _loop_tuple(parameter: Instruction, element: int | None) -> Linear | None:
    return None if element is None else Linear(element, 0)


def _linear(
    instruction: Instruction, computation: Computation, module: Module, parameters: Parameters
) -> Linear | None:
    """The scalar ``instruction`` as *element of the loop's tuple + offset*, or None."""
    if instruction.opcode == "constant":
        return Linear(None, int(instruction.arguments)) if re.fullmatch(r"-?\d+", instruction.arguments) else None
    if instruction.opcode == "parameter":
        return parameters(instruction, None)
    if instruction.opcode in TRANSPARENT:
        return _linear(computation.operand(instruction, 0), computation, module, parameters)
    if instruction.opcode == "get-tuple-element":
        index = int(instruction.attribute("index") or 0)
        return _tuple_part(computation.operand(instruction, 0), index, computation, module, parameters)
    if instruction.opcode in ("add", "subtract"):
        left = _linear(computation.operand(instruction, 0), computation, module, parameters)
        right = _linear(computation.operand(instruction, 1), computation, module, parameters)
        if left is None or right is None:
            return None
        if right.element is None:
            return Linear(left.element, left.offset + (right.offset if instruction.opcode == "add" else -right.offset))
        return (
            Linear(right.element, left.offset + right.offset)
            if instruction.opcode == "add" and left.element is None
            else None
        )
    if instruction.opcode in ("fusion", "call"):
        inner, inner_parameters = _inside(instruction, computation, module, parameters)
        return _linear(inner.root, inner, module, inner_parameters)
    return None


def _tuple_part(
    instruction: Instruction, index: int, computation: Computation, module: Module, parameters: Parameters
) -> Linear | None:
    """Element ``index`` of the tuple ``instruction``."""
    if instruction.opcode == "tuple":
        return _linear(computation.operand(instruction, index), computation, module, parameters)
    if instruction.opcode == "parameter":
        return parameters(instruction, index)
    if instruction.opcode == "copy-start":
        return _linear(computation.operand(instruction, 0), computation, module, parameters)
    if instruction.opcode == "optimization-barrier":
        return _tuple_part(computation.operand(instruction, 0), index, computation, module, parameters)
    if instruction.opcode in ("fusion", "call"):
        inner, inner_parameters = _inside(instruction, computation, module, parameters)
        return _tuple_part(inner.root, index, inner, module, inner_parameters)
    if instruction.opcode == "while":
        # an earlier loop that leaves the element unchanged
        body = module.computations[instruction.called("body")[0]]
        if _carried(index, body, module):
            return _tuple_part(computation.operand(instruction, 0), index, computation, module, parameters)
    return None


def _inside(
    instruction: Instruction, computation: Computation, module: Module, parameters: Parameters
) -> tuple[Computation, Parameters]:
    """The computation that a fusion or call runs, and the values of its parameters."""
    inner = module.computations[instruction.called("calls", "to_apply")[0]]

    def inner_parameters(parameter: Instruction, element: int | None) -> Linear | None:
        outer = computation.operand(instruction, int(parameter.arguments))
        if element is None:
            return _linear(outer, computation, module, parameters)
        return _tuple_part(outer, element, computation, module, parameters)

    return inner, inner_parameters


def _comparison(condition: Computation, module: Module) -> tuple[str, Linear, Linear] | None:
    """``(direction, left, right)`` of the comparison that decides the loop."""
    computation, parameters, instruction = condition, _loop_tuple, condition.root
    while instruction.opcode in ("fusion", "call", *TRANSPARENT):
        if instruction.opcode in TRANSPARENT:
            instruction = computation.operand(instruction, 0)
        else:
            computation, parameters = _inside(instruction, computation, module, parameters)
            instruction = computation.root
    if instruction.opcode != "compare":
        return None
    left = _linear(computation.operand(instruction, 0), computation, module, parameters)
    right = _linear(computation.operand(instruction, 1), computation, module, parameters)
    direction = instruction.attribute("direction")
    return None if left is None or right is None or direction is None else (direction, left, right)
