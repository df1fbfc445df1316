"""XLA flags of GPUs that overlap communication with compute; set before JAX starts its backend.

From docs.jax.dev/en/latest/gpu_performance_tips.html; jaxlib 0.10.2 parses them, and none is its default
(``--xla_gpu_enable_pipelined_reduce_scatter`` is). XLA ends the process at a flag that it does not know. TPUs get
none: libtpu 0.0.42 compiled a program with sharded, scanned layers (v5e:4x4) to the same code with and without
MaxText's flags for asynchronous all-gathers and all-reduces.
"""

from __future__ import annotations

import glob
import os
from collections.abc import MutableMapping

OFF = "JASPER_XLA_FLAGS"
"""An environment variable: ``off`` adds no flags."""

VARIABLE = "XLA_FLAGS"
FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
)
GPU_FILES = "/dev/nvidia[0-9]*"


def add_flags(environment: MutableMapping[str, str]) -> str | None:
    """Add the flags to ``environment``, except those that it already sets, whatever their value.

    Returns what was added, as a line to print; None where nothing was.
    """
    if environment.get(OFF) == "off":
        return None
    own = environment.get(VARIABLE, "")
    named = {flag.lstrip("-").partition("=")[0] for flag in own.split()}
    added = " ".join(flag for flag in FLAGS if flag.lstrip("-").partition("=")[0] not in named)
    if not added:
        return None
    environment[VARIABLE] = f"{added} {own}".strip()
    return f"{VARIABLE}: added {added} ({OFF}=off adds none)"


def gpus_communicate(processes: int | None = None) -> bool:
    """Whether this machine has several GPUs, or has one and is one of several processes (``processes``: of the command
    line). It looks at device files, since asking JAX would start its backend."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted and not any(name in wanted for name in ("gpu", "cuda")):
        return False
    several = (processes or 1) > 1 or any(name in os.environ for name in ("JASPER_COORDINATOR", "JASPER_DISTRIBUTED"))
    several |= int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1
    return len(glob.glob(GPU_FILES)) > (0 if several else 1)
