"""Parse a compiled program's text (optimized HLO, one partition) into computations and instructions.

Only what the counts need is parsed: names, opcodes, shapes with their memory space, operands. Attributes stay text
until they are asked for. A text of several megabytes takes about a second.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
"""Element types whose name does not give their bits, or that occupy a whole byte."""

_LEAF = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_BRACKET = re.compile(r"[()]")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: element type, sizes, memory space (0: the device's main memory; 1 on a TPU: on-chip memory)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes, without the padding of a TPU's tiles."""
        digits = re.search(r"\d+", self.dtype)
        bits = BITS.get(self.dtype, int(digits[0]) if digits else 0)
        return math.ceil(self.elements * bits / 8)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse ``f32[2,3]{1,0:T(8,128)S(1)}``, or a (nested) tuple of such, into a flat tuple of arrays."""
    shapes = []
    for dtype, dims, layout in _LEAF.findall(text):
        space = _SPACE.search(layout) if layout else None
        sizes = tuple(int(d.strip(" <=")) for d in dims.split(",") if d.strip())
        shapes.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(shapes)


@dataclasses.dataclass
class Instruction:
    """``%name = shape opcode(operands), attributes``."""

    name: str
    opcode: str
    shape_text: str
    arguments: str
    attributes: str
    root: bool
    operands: tuple[str, ...] = ()

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The arrays of the result: one, or those of a tuple."""
        return parse_shapes(self.shape_text)

    def attribute(self, key: str) -> str | None:
        """The value in ``key=value``, up to a comma outside brackets and quotes; None without the key."""
        match = re.search(rf"(?:^|[\s,]){re.escape(key)}=", self.attributes)
        return None if match is None else _value(self.attributes, match.end())

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under the attributes ``keys``."""
        return [name for key in keys for name in _NAME.findall(self.attribute(key) or "")]

    @property
    def op_name(self) -> str:
        """Its place in the Python program, as JAX names it."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""


def _value(text: str, start: int) -> str:
    depth, quoted = 0, False
    for position in range(start, len(text)):
        char = text[position]
        if char == '"':
            quoted = not quoted
        elif not quoted and char in "{([":
            depth += 1
        elif not quoted and char in "})]":
            depth -= 1
        elif not quoted and char == "," and depth == 0:
            return text[start:position]
    return text[start:]


@dataclasses.dataclass
class Computation:
    """A function of the program. ``instructions``: by name, in the order of the text, which is the schedule if any."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(i for i in reversed(self.instructions.values()) if i.root)

    @cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, in order."""
        parameters = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(parameters, key=lambda i: int(i.arguments))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that makes the operand number ``index`` of ``instruction``."""
        return self.instructions[instruction.operands[index]]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one that runs first."""

    computations: dict[str, Computation]
    entry: Computation


def parse_module(text: str) -> Module:
    """Parse the text of ``compiled.as_text()``.

    Raises:
      ValueError: a line of an unknown form (the format has changed), or no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    for line in _whole_lines(text):
        if current is None:
            # A computation begins in the first column. The tables of source lines above it do not end in "{".
            if line.endswith("{") and line.startswith(("%", "ENTRY")):
                name = _NAME.search(line)
                if name is None:
                    raise ValueError(f"HLO: expected the name of a computation, got {line[:120]}")
                current = computations[name[1]] = Computation(name[1])
                if line.startswith("ENTRY"):
                    entry = current
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            instruction = _instruction(line)
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("HLO: no entry computation")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of the text, each instruction joined into one line: the settings of a kernel may contain newlines."""
    held: list[str] = []
    for line in text.splitlines():
        if held and not line.startswith(("  %", "  ROOT ")) and line != "}" and not line.startswith("}, "):
            held.append(line)
            continue
        if held:
            yield " ".join(held)
            held = []
        if line.startswith(("  %", "  ROOT ")):
            held.append(line)
        else:
            yield line
    if held:
        yield " ".join(held)


def _instruction(line: str) -> Instruction:
    left, _, rest = line.strip().partition(" = ")
    root = left.startswith("ROOT ")
    name = left.removeprefix("ROOT ").lstrip("%")
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, bracket, _ = rest.partition("(")
    if not bracket:
        raise ValueError(f"HLO: no operands in {line.strip()[:120]}")
    end = _closing(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : end - 1]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(arguments))
    return Instruction(name, opcode, shape, arguments, rest[end:].lstrip(", "), root, operands)


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at ``start``."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"HLO: unclosed bracket in {text[:120]}")


def leaves_of(instruction: Instruction, computation: Computation) -> Iterator[Instruction]:
    """The instructions that make the elements of a tuple, or the instruction itself."""
    if instruction.opcode == "tuple":
        for name in instruction.operands:
            yield computation.instructions[name]
    else:
        yield instruction
