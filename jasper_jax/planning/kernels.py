"""Hand-written kernels: custom calls, whose operations the program's text does not show.

A Pallas kernel may state its own count (``pallas_call(..., cost_estimate=...)``); JAX's flash attention does so for its
forward pass alone, so the count of its backward passes is made from the shapes here. Any other kernel is reported as
unknown, and the caller may bring a count of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from jasper_jax.planning.hlo import Computation, Instruction, Shape
from jasper_jax.planning.traffic import BOOKKEEPING, target


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call. ``stated_flops``: by the kernel's author, None where there is no statement."""

    name: str
    target: str
    op_name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    stated_flops: float | None
    executions: float = 1.0


KernelFlops = Callable[[Kernel], float | None]
"""Operations of one execution of a kernel, or None: not known."""


def read_kernel(instruction: Instruction, computation: Computation) -> Kernel | None:
    """The kernel that ``instruction`` runs; None where it runs none."""
    what = target(instruction)
    if what is None or what in BOOKKEEPING:
        return None
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    operands = tuple(shape for name in instruction.operands for shape in computation.instructions[name].shapes)
    return Kernel(
        instruction.name, what, instruction.op_name, operands, instruction.shapes, float(stated[1]) if stated else None
    )


FLASH_PRODUCTS = (("dkv", 4), ("dq", 3))
"""Matrix products of 2·B·H·L·M·E operations (queries L, keys M): dK and dV need QKᵀ, dO Vᵀ, Pᵀ dO and dSᵀ Q; dQ needs
QKᵀ, dO Vᵀ and dS K. A kernel that gives all three needs five."""


def known_flops(kernel: Kernel) -> float | None:
    """What the kernel states, or what is known of flash and splash attention.

    Their first wide operands are q ``[B, H, L, E]`` and k ``[B, K, M, E]``, without B where a device has one row. Tiles
    that a causal mask or a window spares are counted, too."""
    if kernel.stated_flops is not None:
        return kernel.stated_flops
    if "flash" in kernel.op_name or "splash" in kernel.op_name:
        wide = [one for one in kernel.operands if len(one.dims) >= 3 and one.dims[-2] >= 64 and one.dims[-1] >= 8]
        products = next((count for name, count in FLASH_PRODUCTS if name in kernel.op_name), 2)
        if len(wide) >= 2:
            query, key = wide[:2]
            gradients = [r for r in kernel.results if len(r.dims) >= 3 and r.dims[-1] == query.dims[-1]]
            products = 5 if products == 4 and len(gradients) == 3 else products
            return 2.0 * products * query.elements * key.dims[-2]
    return None
