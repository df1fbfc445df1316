"""Bytes that a compiled program needs on one device, and what the compiler says when that is too much."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler allots them.

    aliased: outputs that take the place of donated arguments. program: the code itself, which lies in the same memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    program: int

    @property
    def peak(self) -> int:
        """All of it at once: temporaries are one allocation that lives as long as the program runs. (XLA's
        ``peak_memory_in_bytes`` is not used: for a TPU it includes arrays on the chip.)"""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.program


def program_memory(compiled: Any) -> Memory:
    """Of ``jax.jit(...).lower(...).compile()``."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


@dataclasses.dataclass(frozen=True)
class DoesNotFit:
    """What the TPU compiler says of a program that is too large, in bytes (it rounds to a hundredth of a GiB)."""

    needed: int
    available: int


def does_not_fit(error: Exception) -> DoesNotFit | None:
    """Read the compiler's refusal; None where ``error`` is about something else."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"\({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"):
        if match := re.search(pattern, text):
            needed, available = (float(match[i]) * UNITS[match[i + 1]] for i in (1, 3))
            return DoesNotFit(int(needed), int(available))
    return None
