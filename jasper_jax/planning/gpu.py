"""Compile for GPUs that this machine does not have: XLA's GPU compiler takes a description of the card.

The wheels of the extra ``plan-gpu`` hold the compiler, without the libraries that a run needs (cuDNN, NCCL, cuBLAS).
What it would find out on a machine with the card is described: the card's sizes, and the versions of those libraries.
Kernels are not timed (autotuning needs the card), so the compiler chooses by its own cost model.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from typing import Any

from jasper_jax.planning.chips import Chip
from jasper_jax.runtime.errors import UserError, first_line

EXTRA = "pip install 'jasper-jax[plan-gpu]'"
CUDA, CUDNN = (13, 0, 0), (9, 12, 0)
"""The oldest versions that jax 0.10.2 takes."""

COMPILER_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    # Without timing, a generated kernel is taken where cuBLAS would win, and some shapes have none that compiles.
    "xla_gpu_enable_triton_gemm": False,
}


@dataclasses.dataclass(frozen=True)
class Card:
    """A card as the CUDA driver describes it: compute capability, streaming multiprocessors, float32 units, shared
    memory (bytes of a multiprocessor, and what one block may take), threads of a multiprocessor, L2 cache, clock."""

    capability: tuple[int, int]
    cores: int
    float_units: int
    shared: int
    shared_by_block: int
    threads: int
    cache: int
    gigahertz: float


_AMPERE = Card((8, 0), 108, 64, 164 << 10, 163 << 10, 2048, 40 << 20, 1.41)
CARDS = {
    # CUDA C++ Programming Guide, "Compute Capabilities" (units, threads, shared memory); Nvidia's whitepapers of the
    # generations (multiprocessors, L2, boost clock).
    "h100": Card((9, 0), 132, 128, 228 << 10, 227 << 10, 2048, 50 << 20, 1.98),
    "a100-40g": _AMPERE,
    "a100-80g": _AMPERE,
    "a6000": Card((8, 6), 84, 128, 100 << 10, 99 << 10, 1536, 6 << 20, 1.8),
    "rtx4090": Card((8, 9), 128, 128, 100 << 10, 99 << 10, 1536, 72 << 20, 2.52),
    "l4": Card((8, 9), 58, 128, 100 << 10, 99 << 10, 1536, 48 << 20, 2.04),
}


def prepare_gpu_compiler() -> None:
    """Let JAX load the compiler without the libraries of a run; must run before JAX finds its devices."""
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def gpu_devices(chip: Chip, count: int, nodes: int = 1) -> list[Any]:
    """``count`` GPUs in ``nodes`` equal nodes, each joined by fast links: programs can be compiled for them,
    they hold no arrays.

    Raises:
      UserError: the GPU compiler is not installed, or of another version than JAX.
    """
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        raise UserError(f"topology: {count}x{chip.name} needs XLA's GPU compiler, which is not installed: {EXTRA}")
    prepare_gpu_compiler()
    import jax
    from jax.experimental import topologies

    _answer_for_cudnn()
    try:
        description = topologies.get_topology_desc(
            platform="cuda",
            topology_name=chip.name,
            target_config=describe(chip),
            topology=f"{nodes}x1x{count // nodes}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as e:
        raise UserError(f"topology: {count}x{chip.name} is refused by XLA's GPU compiler: {first_line(e)}") from e
    return list(description.devices)


def describe(chip: Chip) -> str:
    """The card as XLA's ``GpuTargetConfigProto`` (stream_executor/device_description.proto), in protobuf's text."""
    card = CARDS[chip.name]
    cuda, cudnn = ".".join(map(str, CUDA)), ".".join(map(str, CUDNN))
    major, minor = card.capability
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 << 10,
        "shared_memory_per_block_optin": card.shared_by_block,
        "shared_memory_per_core": card.shared,
        "threads_per_core_limit": card.threads,
        "core_count": card.cores,
        "fpus_per_core": card.float_units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": card.cache,
        "clock_rate_ghz": card.gigahertz,
        "device_memory_size": chip.usable_memory,
        "driver_version": f'"{cuda}"',
        "runtime_version": f'"{cuda}"',
        "compile_time_toolkit_version": f'"{cuda}"',
        "dnn_version": f'"{cudnn}"',
    }
    info = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    capability = f"  cuda_compute_capability {{ major: {major} minor: {minor} }}"
    version = "dnn_version_info {{ major: {} minor: {} patch: {} }}".format(*CUDNN)
    return (
        f"gpu_device_info {{\n{info}\n{capability}\n}}\n"
        f'platform_name: "CUDA"\n{version}\ndevice_description_str: "{chip.name}"\n'
    )


def _answer_for_cudnn() -> None:
    """JAX asks the installed cuDNN for its version while it traces attention; where none is installed, give it that of
    the described machine."""
    from jax._src.cudnn import fused_attention_stablehlo

    try:
        fused_attention_stablehlo.check_cudnn_version()
    except RuntimeError:
        fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN[0] * 10000 + CUDNN[1] * 100 + CUDNN[2]
