"""Floating-point operations of matrix products and convolutions; a multiply-add counts as two.

The TPU compiler turns every matrix product into a convolution, whose batch dimensions are windows over a dilated input.
Therefore the positions of a window are counted one by one: only those that meet an input element do work. Element-wise
operations, reductions and sorts do not use the matrix units and are not counted.
"""

from __future__ import annotations

import dataclasses
import math
import re
from functools import lru_cache

from jasper_jax.planning.hlo import Computation, Instruction

CUBLAS = re.compile(r'custom_call_target="__cublas\$')
"""How the GPU compiler writes most matrix products; their dimensions and precision are in the call's settings."""


def is_product(instruction: Instruction) -> bool:
    """Whether ``instruction`` is a matrix product or a convolution."""
    return instruction.opcode in ("dot", "convolution") or (
        instruction.opcode == "custom-call" and CUBLAS.search(instruction.attributes) is not None
    )


def matmul_flops(instruction: Instruction, computation: Computation) -> int:
    """Operations of a product (:func:`is_product`), two per multiply-add."""
    if instruction.opcode != "convolution":
        left = computation.operand(instruction, 0).shapes[0]
        name = "lhs_contracting_dims" if instruction.opcode == "dot" else '"lhs_contracting_dimensions"'
        dims = re.search(name + r"[=:]([{\[][^}\]]*)", instruction.attributes)
        contracted = [int(d) for d in re.findall(r"\d+", dims[1] if dims else "")]
        return 2 * instruction.shapes[0].elements * math.prod(left.dims[d] for d in contracted)
    return 2 * _convolution(instruction, computation)


def passes(instruction: Instruction, computation: Computation, highest: float = 6.0) -> float:
    """bfloat16 products that take as long as this one: more than 1 for float32 operands of raised precision, namely
    ``highest`` at ``Precision.HIGHEST``, half of it at ``HIGH`` (jax.lax.Precision: "bfloat16_6x", "bfloat16_3x")."""
    precision = re.search(r'operand_precision"?[=:][{\[]"?(\w+)"?,"?(\w+)"?[}\]]', instruction.attributes)
    if precision is None or computation.operand(instruction, 0).shapes[0].dtype not in ("f32", "f64"):
        return 1
    costs = {"high": highest / 2, "highest": highest}
    return max(costs.get(name.lower(), 1) for name in precision.groups())


def _convolution(instruction: Instruction, computation: Computation) -> int:
    """Multiply-adds: output batch x output features x input features x window positions that meet an element."""
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
    """XLA's description of how the kernel moves along one dimension. ``low``: padding, which may be negative."""

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
    """Number of pairs (output position, kernel position) on an input element, not on padding or a gap of dilation."""
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
