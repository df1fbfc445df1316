"""Real processes on this machine that train one tiny recipe together, each with devices of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(
    recipe: Path,
    log: Path,
    *,
    process: int = 0,
    processes: int = 1,
    port: int = 0,
    devices: int = 1,
    command: str = "train",
    overrides: tuple[str, ...] = (),
    cache: Path | None = None,
    **environment: str,
) -> subprocess.Popen:
    """``jasper train``, process ``process`` of ``processes``; output goes to ``log``."""
    together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process", str(process)]
    known = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JASPER_CACHE": str(cache or log.parent / "cache"),
        **environment,
    }
    with log.open("a") as file:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jasper_jax.cli",
                command,
                str(recipe),
                *overrides,
                *(together if processes > 1 else []),
            ],
            env=known,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
