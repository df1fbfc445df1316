"""What a bit-for-bit repetition of a run depends on besides its recipe."""

from __future__ import annotations

import os
from typing import Any


def environment() -> dict[str, Any]:
    """Versions and machine, as they are recorded in checkpoints and evaluations."""
    import jax
    from jaxlib import version

    return {
        "jaxlib": version.__version__,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
