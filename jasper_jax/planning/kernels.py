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


def read_kernel(at: Instruction, within: Computation) -> Kernel | None:
    """The kernel that ``at`` runs; None where it runs none."""
    what = target(at)
    if what is None or what in BOOKKEEPING:
        return None
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', at.attributes)
    operands = tuple(shape for name in at.operands for shape in within.instructions[name].shapes)
    return Kernel(at.name, what, at.op_name, operands, at.shapes, float(stated[1]) if stated else None)


FLASH_PRODUCTS = (("bwd_dkv", 4), ("bwd_dq", 3))
"""Matrix products of 2·B·H·L·M·E operations (queries L, keys M): dK and dV need QKᵀ, dO Vᵀ, Pᵀ dO and dSᵀ Q; dQ needs
QKᵀ, dO Vᵀ and dS K."""


def known_flops(kernel: Kernel) -> float | None:
    """What the kernel states, or what is known of flash attention (operands q ``[B, H, L, E]``, k ``[B, K, M, E]``)."""
    if kernel.stated_flops is not None:
        return kernel.stated_flops
    if "flash" in kernel.op_name and len(kernel.operands) >= 3:
        query, key = kernel.operands[:2]
        products = next((count for name, count in FLASH_PRODUCTS if name in kernel.op_name), 2)
        if len(query.dims) == len(key.dims) == 4:
            return 2.0 * products * query.elements * key.dims[2]
    return None
