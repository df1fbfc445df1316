"""Hand-written kernels: custom calls, whose operations are not in the program's text.

A Pallas kernel may state its own operations (``pallas_call(..., cost_estimate=...)``). JAX's flash attention states
those of its forward pass only; here those of its backward passes are computed from the shapes. Any other kernel is
reported as unknown, and the caller may pass a count.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from jasper_jax.planning.hlo import Computation, Instruction, Shape
from jasper_jax.planning.traffic import BOOKKEEPING, target


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A custom call. ``stated_flops``: operations that the kernel's author states, None without a statement.
    ``scores``: of cuDNN's attention, the shape of the scores, which it never stores: [B, H, L, M]."""

    name: str
    target: str
    op_name: str
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]
    stated_flops: float | None
    scores: tuple[int, ...] = ()
    executions: float = 1.0


KernelFlops = Callable[[Kernel], float | None]
"""Operations of one execution of a kernel; None if unknown."""


def read_kernel(instruction: Instruction, computation: Computation) -> Kernel | None:
    """The kernel that ``instruction`` runs; None if it runs none."""
    called = target(instruction)
    if called is None or called in BOOKKEEPING:
        return None
    scores = re.search(r'"intermediate_tensor_shape".*?"dimensions":\s*\[([^]]*)\]', instruction.attributes)
    stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
    operands = tuple(shape for name in instruction.operands for shape in computation.instructions[name].shapes)
    return Kernel(
        instruction.name,
        called,
        instruction.op_name,
        operands,
        instruction.shapes,
        float(stated[1]) if stated else None,
        tuple(int(n) for n in re.findall(r"\d+", scores[1])) if scores else (),
    )


FLASH_PRODUCTS = (("dkv", 4), ("dq", 3))
"""Matrix products of 2·B·H·L·M·E operations (queries L, keys M): dK and dV need QKᵀ, dO Vᵀ, Pᵀ dO and dSᵀ Q; dQ needs
QKᵀ, dO Vᵀ and dS K. A kernel that gives all three needs five."""


def known_flops(kernel: Kernel) -> float | None:
    """The kernel's stated operations, or those of flash, splash and cuDNN's attention by their shapes; None if unknown.
    Those of the relative loss have none: they compare and add, and matrix units have no part in it.

    The first two large operands of attention are q ``[B, H, L, E]`` and k ``[B, K, M, E]``, without B if a device has
    one row. Tiles that a causal mask or a window skips are counted too.
    """
    if kernel.stated_flops is not None:
        return kernel.stated_flops
    if any(name in kernel.op_name for name in ("relative_count", "merge_sorted")):
        return 0.0
    if kernel.target.startswith("__cudnn$fmha") and kernel.scores:
        products = 5 if "Backward" in kernel.target else 2
        return 2.0 * products * math.prod(kernel.scores) * kernel.operands[0].dims[-1]
    if "flash" in kernel.op_name or "splash" in kernel.op_name:
        large = [s for s in kernel.operands if len(s.dims) >= 3 and s.dims[-2] >= 64 and s.dims[-1] >= 8]
        products = next((count for name, count in FLASH_PRODUCTS if name in kernel.op_name), 2)
        if len(large) >= 2:
            query, key = large[:2]
            gradients = [r for r in kernel.results if len(r.dims) >= 3 and r.dims[-1] == query.dims[-1]]
            products = 5 if products == 4 and len(gradients) == 3 else products
            return 2.0 * products * query.elements * key.dims[-2]
    return None
