"""Bytes that arrays and a compiled program need on one device, and the compiler's refusal of a too large one."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler allocates them.

    aliased: outputs that reuse the memory of donated arguments. program: the code itself, in the same memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """The sum: temporaries are one allocation for the whole execution. XLA's own ``peak_memory_in_bytes`` is not
        used, since for a TPU it includes arrays in on-chip memory."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


def program_memory(compiled: Any) -> Memory:
    """Memory of ``compiled``, the result of ``jax.jit(...).lower(...).compile()``."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def device_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of arrays, or of shapes with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """The TPU compiler's figures for a program that is too large, in bytes, which it rounds to 0.01 GiB."""

    needed: int
    available: int


def does_not_fit(error: Exception) -> DoesNotFit | None:
    """Parse the compiler's error; None if it is not about memory."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"):
        if match := re.search(pattern, text):
            needed, available = (float(match[i]) * UNITS[match[i + 1]] for i in (1, 3))
            return DoesNotFit(int(needed), int(available))
    return None
