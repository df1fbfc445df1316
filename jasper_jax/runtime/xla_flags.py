"""XLA flags that overlap communication with compute, by platform; set before JAX starts its backend.

GPU: docs.jax.dev/en/latest/gpu_performance_tips.html. TPU: the set that MaxText calls continuation fusion of
all-reduce and all-gather (``benchmarks/xla_flags_library.py``). XLA ends the process at a flag that it does not know:
those of GPUs were parsed by jaxlib 0.10.2, those of TPUs by libtpu 0.0.42.
"""

from __future__ import annotations

import glob
import os
from collections.abc import MutableMapping

from jasper_jax.runtime.compilers import TPU_FILES

OFF = "JASPER_XLA_FLAGS"
"""An environment variable: ``off`` adds no flags."""

GPU_FILES = "/dev/nvidia[0-9]*"
FLAGS = {
    "gpu": (
        "XLA_FLAGS",
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_pipelined_all_reduce=true",
        ),
    ),
    "tpu": (
        "LIBTPU_INIT_ARGS",
        (
            "--xla_enable_async_all_reduce=true",
            "--xla_enable_async_all_gather=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
        ),
    ),
}
"""Platform -> the environment variable that takes its flags, and the flags."""


def add_flags(platform: str | None, environment: MutableMapping[str, str]) -> str | None:
    """Add the platform's flags to ``environment``, except those that it already sets, whatever their value.

    Returns what was added, as a line to print; None where nothing was.
    """
    if platform is None or environment.get(OFF) == "off":
        return None
    variable, flags = FLAGS[platform]
    own = environment.get(variable, "")
    named = {flag.lstrip("-").partition("=")[0] for flag in own.split()}
    added = " ".join(flag for flag in flags if flag.lstrip("-").partition("=")[0] not in named)
    if not added:
        return None
    environment[variable] = f"{added} {own}".strip()
    return f"{variable}: added {added} ({OFF}=off adds none)"


def communicating_platform() -> str | None:
    """``gpu`` or ``tpu`` where this machine has several such devices, or there are several processes; None elsewhere.
    It looks at device files, since asking JAX would start its backend."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    several = any(name in os.environ for name in ("JASPER_COORDINATOR", "JASPER_DISTRIBUTED"))
    several |= int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1
    files = {"gpu": glob.glob(GPU_FILES), "tpu": [file for pattern in TPU_FILES for file in glob.glob(pattern)]}
    for platform, names in (("gpu", ("gpu", "cuda")), ("tpu", ("tpu",))):
        asked = not wanted or any(name in wanted for name in names)
        if asked and (len(files[platform]) > 1 or (several and files[platform])):
            return platform
    return None
