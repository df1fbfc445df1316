"""Floating-point operations of matrix products and convolutions: a multiply and an add are two.

On a TPU every matrix product is compiled to a convolution, batch dimensions as windows over a dilated input, so a
window's positions are counted one by one: only those that meet an input element do work. Element-wise operations,
reductions and sorts run beside the matrix units and are not counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
from functools import lru_cache

from jasper_jax.planning.hlo import Computation, Instruction

PASSES = {"default": 1, "high": 3, "highest": 6}
"""bfloat16 products that a TPU makes of one float32 product (jax.lax.Precision: "bfloat16_3x", "bfloat16_6x")."""


def matmul_flops(instruction: Instruction, computation: Computation) -> int:
    """2 x multiply-adds of a ``dot`` or ``convolution``; 0 for anything else."""
    if instruction.opcode == "dot":
        left = computation.operand(instruction, 0).shapes[0]
        contracted = [int(d) for d in re.findall(r"\d+", instruction.attribute("lhs_contracting_dims") or "")]
        return 2 * instruction.shapes[0].elements * math.prod(left.dims[d] for d in contracted)
    if instruction.opcode == "convolution":
        return 2 * _convolution(instruction, computation)
    return 0


def passes(instruction: Instruction, computation: Computation) -> int:
    """How many bfloat16 products one product takes on a TPU: more than one for float32 operands of raised precision."""
    found = re.search(r"operand_precision=\{(\w+),(\w+)\}", instruction.attributes)
    if found is None or computation.operand(instruction, 0).shapes[0].dtype not in ("f32", "f64"):
        return 1
    return max(PASSES.get(found[1], 1), PASSES.get(found[2], 1))


def _convolution(instruction: Instruction, computation: Computation) -> int:
    """Multiply-adds: output batch x output features x input features of the kernel x positions that meet an element."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        raise ValueError(f"HLO: convolution {instruction.name} without dim_labels")
    inputs, kernel, output = labels.groups()
    in_dims, kernel_dims = (computation.operand(instruction, i).shapes[0].dims for i in (0, 1))
    out_dims = instruction.shapes[0].dims
    positions = 1
    for dim, window in _windows(instruction, output).items():
        positions *= _positions(in_dims[inputs.index(dim)], out_dims[output.index(dim)], window)
    return out_dims[output.index("b")] * out_dims[output.index("f")] * kernel_dims[kernel.index("i")] * positions


@dataclasses.dataclass(frozen=True)
class Window:
    """How the kernel moves along one dimension, as XLA writes it; padding may be negative."""

    size: int = 1
    stride: int = 1
    low: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1


def _windows(instruction: Instruction, output: str) -> dict[str, Window]:
    spatial = sorted(c for c in output if c.isdigit())
    text = instruction.attribute("window") or ""

    def field(name: str, absent: str) -> list[str]:
        match = re.search(rf"(?:^|[\s{{]){name}=([^\s}}]+)", text)
        return match[1].split("x") if match else [absent] * len(spatial)

    columns = (field("size", "1"), field("stride", "1"), field("pad", "0_0"), field("lhs_dilate", "1"))
    rows = zip(*columns, field("rhs_dilate", "1"))
    return {
        dim: Window(int(size), int(stride), int(pad.split("_")[0]), int(dilation), int(kernel))
        for dim, (size, stride, pad, dilation, kernel) in zip(spatial, rows)
    }


@lru_cache(maxsize=4096)
def _positions(size: int, outputs: int, window: Window) -> int:
    """Pairs (output position, kernel position) that fall on an input element, not on padding or a hole of dilation."""
    if window.size == 1 and window.low == 0 and window.input_dilation == 1 and (outputs - 1) * window.stride < size:
        return outputs
    extent = (size - 1) * window.input_dilation + 1
    count = 0
    for k in range(window.size):
        first = k * window.kernel_dilation - window.low
        for o in range(outputs):
            position = first + o * window.stride
            count += 0 <= position < extent and position % window.input_dilation == 0
    return count
