"""What a check is: a function of the size that returns figures, some of them with a pass mark."""

from __future__ import annotations

import dataclasses
import importlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
SIZES = ("full", "tiny")


class Skip(Exception):
    """The check does not apply here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """``passed``: whether every figure of ``values`` is within the check's mark."""

    passed: bool
    values: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """``function`` is ``module:name`` in this package, imported when the check runs. ``mark`` says when it passes.
    ``seconds``: the most that it may take."""

    name: str
    function: str
    mark: str
    seconds: float = 120.0

    def run(self, size: str) -> dict[str, Any]:
        """The JSON line: ``status`` is passed, failed, skipped or error."""
        line: dict[str, Any] = {"check": self.name, "mark": self.mark, "size": size}
        try:
            module, name = self.function.split(":")
            function: Callable[[str], Outcome] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
            outcome = function(size)
        except Skip as reason:
            return {**line, "status": "skipped", "reason": str(reason)}
        except Exception as error:  # noqa: BLE001  (one check must not end the others)
            text = f"{type(error).__name__}: {error}"
            return {**line, "status": "error", "error": text[:2000], "traceback": traceback.format_exc()[-4000:]}
        return {**line, "status": "passed" if outcome.passed else "failed", **outcome.values}


CHECKS = (
    Check("device", "numerics:device", "JAX finds a device and multiplies matrices"),
    Check(
        "attention",
        "numerics:fused_attention",
        "the platform's fused form is chosen; relative error < 2e-2 in bf16, gradient cosine > 0.999, finite",
    ),
    Check("precision", "numerics:precision", "heads and similarities within 1e-5 of float64"),
    Check("relative", "numerics:relative_forms", "both forms: loss within 1e-5, gradient within 1e-4"),
    Check("gradients", "numerics:gradients", "one step's gradients: cosine with the CPU's > 0.999, finite"),
    Check("stella_400m-stage3", "steps:stella_stage3", "MFU >= 35%, peak memory within 15% of the plan", 150),
    Check("jasper_2b-stage3", "steps:jasper_stage3", "MFU >= 40%, peak memory within 15% of the plan", 180),
    Check("jasper_2b-stage1", "steps:jasper_stage1", "MFU >= 40%, peak memory within 15% of the plan", 150),
    Check("idle", "host:idle", "loading and tokenising add < 3% to 50 steps", 150),
    Check("checkpoint-memory", "host:checkpoint_memory", "bytes in use within 5% ten steps after a save", 150),
    Check("embedder", "host:embedder", "finite vectors; waiting between shards < 5%", 150),
    Check("sigterm", "processes:sigterm", "SIGTERM ends jasper train with code 75 within 60 s", 180),
    Check("compile-cache", "processes:compile_cache", "a second process reads every program from the cache", 180),
    Check("torch-teacher", "host:torch_teacher", "torch and JAX on one device; cosine of their vectors > 0.999", 120),
    Check("stages-compile", "steps:stages_compile", "all stages of both recipes compile with default flags", 300),
)


def cache_programs(scratch: Path) -> None:
    """Share compiled programs among the processes of one call of the script."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(scratch / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def scratch_folder() -> Path:
    """The folder of this call of the script, shared by its processes."""
    return Path(os.environ["ACCELERATOR_SCRATCH"])
