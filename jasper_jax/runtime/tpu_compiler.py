"""Keep the TPU compiler (libtpu, extra ``plan``) away from commands that do not plan.

JAX takes an installed libtpu for a sign of a TPU and starts its runtime. On a machine without a TPU that runtime prints
several lines of errors before JAX falls back to the other devices.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterator

DEVICE_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Through which libtpu reaches the chips of this machine."""


def may_have_tpu() -> bool:
    """Whether a TPU's device file exists, or the user has told JAX of a TPU or of a libtpu."""
    told = "tpu" in os.environ.get("JAX_PLATFORMS", "") or {"TPU_LIBRARY_PATH", "JAX_FORCE_TPU_INIT"} & set(os.environ)
    return bool(told) or any(glob.glob(pattern) for pattern in DEVICE_FILES)


@contextlib.contextmanager
def hidden_tpu_compiler() -> Iterator[None]:
    """Within the block ``import libtpu`` fails as if it were not installed, unless this machine may have a TPU."""
    if may_have_tpu() or "libtpu" in sys.modules:
        yield
        return
    sys.modules["libtpu"] = None  # pyright: ignore[reportArgumentType]  (Python's way to make an import fail)
    try:
        yield
    finally:
        del sys.modules["libtpu"]
