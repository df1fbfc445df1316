"""Keep compilers for other machines (extras ``plan`` and ``plan-gpu``) away from commands that do not plan.

JAX takes an installed libtpu for a sign of a TPU, and an installed CUDA plugin for a sign of a GPU, and starts their
runtimes. On a machine without such a device they print errors before JAX falls back to the other devices.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import types
from collections.abc import Iterator

from jasper_jax.runtime.errors import first_line

TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
"""Through which the runtimes reach devices of this machine; of a GPU also under Windows (WSL 2), and on Jetson."""

CUDA_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


def may_have_tpu() -> bool:
    """Whether a TPU's device file exists, or the user has told JAX of a TPU or of a libtpu."""
    return _told("tpu") or bool({"TPU_LIBRARY_PATH", "JAX_FORCE_TPU_INIT"} & set(os.environ)) or _any_file(TPU_FILES)


def may_have_gpu() -> bool:
    """Whether a GPU's device file exists, or the user has told JAX of a GPU."""
    return _told("cuda") or _told("gpu") or _any_file(GPU_FILES)


def _told(platform: str) -> bool:
    return platform in os.environ.get("JAX_PLATFORMS", "")


def _any_file(patterns: tuple[str, ...]) -> bool:
    return any(glob.glob(pattern) for pattern in patterns)


@contextlib.contextmanager
def hidden_compilers() -> Iterator[None]:
    """Within the block ``import libtpu`` fails as if it were not installed, unless this machine may have a TPU; and
    JAX's CUDA plugin registers nothing, unless it may have a GPU."""
    hidden: dict[str, types.ModuleType | None] = {}
    if not may_have_tpu():
        hidden["libtpu"] = None  # Python's way to make an import fail
    if not may_have_gpu():
        hidden |= {name: _idle_plugin(name) for name in CUDA_PLUGINS}
    hidden = {name: module for name, module in hidden.items() if name not in sys.modules}
    sys.modules.update(hidden)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def missing_platform() -> str | None:
    """What to say if ``JAX_PLATFORMS`` names a platform that JAX cannot start here; None if it names none, or JAX was
    not imported."""
    if not (wanted := os.environ.get("JAX_PLATFORMS")) or (jax := sys.modules.get("jax")) is None:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
        reason = f" ({first_line(error)})" if str(error) else ""
        return (
            f"JAX_PLATFORMS: {wanted!r} cannot be used on this machine{reason}; unset it, or install the extra of that"
            f" platform (cuda or tpu) where there is one"
        )
    return None


def _idle_plugin(name: str) -> types.ModuleType:
    """A plugin that does nothing. JAX finds plugins by the files of ``jax_plugins`` and warns of one that it cannot
    import."""
    module = types.ModuleType(name)
    module.initialize = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    return module


def use_cpu() -> None:
    """Let JAX find no device but the CPU, unless the user has named platforms: a plan uses no other, and must neither
    wait for accelerators nor take their memory."""
    import jax

    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
