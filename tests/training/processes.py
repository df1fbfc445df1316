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


def run_together(program: str, *arguments: str, count: int = 2, **environment: str) -> list[tuple[int, str]]:
    """Exit code and output of ``count`` Python processes of one program, which finds its coordinator's address and
    its index in ``JASPER_COORDINATOR`` and ``JASPER_PROCESS``, as ``jasper`` does."""
    address = {"JASPER_COORDINATOR": f"127.0.0.1:{free_port()}", "JASPER_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env={**os.environ, **address, "JASPER_PROCESS": str(index), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, output) for process, output in zip(started, outputs)]


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
    **environment: str,
) -> subprocess.Popen:
    """``jasper train``, process ``process`` of ``processes``; output goes to ``log``."""
    together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process", str(process)]
    known = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
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
