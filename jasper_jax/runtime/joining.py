"""How the processes of a run find each other at its start: by addresses that are given, or that JAX finds itself.

Each process of a TPU pod, of a SLURM job, or of a list of addresses runs the same command.
"""

from __future__ import annotations

import os
import socket
import time

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.listening import bind_address
from jasper_jax.runtime.processes import join

COORDINATOR, PROCESSES, PROCESS = "JASPER_COORDINATOR", "JASPER_PROCESSES", "JASPER_PROCESS"
PATIENCE = 120
"""Seconds to wait for the other processes at the start; ``JASPER_PATIENCE`` overrides it."""


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes, if there are any. Must run before anything else uses a device.

    The addresses come from the arguments, else from ``JASPER_COORDINATOR`` (host:port of process 0),
    ``JASPER_PROCESSES`` and ``JASPER_PROCESS``. Without either, JAX finds them in the environment if this is a SLURM
    job of several tasks or ``JASPER_DISTRIBUTED=auto`` (set by the launcher of TPU pods). Otherwise this is the only
    process.

    Raises:
      UserError: the settings are incomplete or out of range, or the coordinator does not answer in time.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    count = _number(PROCESSES, "--processes", processes)
    index = _number(PROCESS, "--process", process)
    if coordinator is None and count is None and index is None:
        in_slurm = int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in os.environ
        if in_slurm or os.environ.get("JASPER_DISTRIBUTED") == "auto":
            join(_patience())
        return
    if coordinator is None or count is None or index is None:
        raise UserError(
            f"several processes: --coordinator ({COORDINATOR}), --processes ({PROCESSES}) and --process ({PROCESS}) go"
            f" together; seen: {coordinator}, {count}, {index}"
        )
    if not 0 <= index < count:
        raise UserError(f"--process {index}: allowed are 0 to {count - 1} with --processes {count}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {coordinator}: expected host:port of process 0, e.g. 10.0.0.1:8476")
    if count == 1:
        return
    if index:
        _wait_for_coordinator(host, int(port))
    own = {} if index else bind_address(host, int(port))
    join(_patience(), coordinator_address=coordinator, num_processes=count, process_id=index, **own)


def _number(variable: str, option: str, value: int | None) -> int | None:
    """``value`` of the command line's ``option``, else of the environment's ``variable``."""
    if value is not None:
        return value
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{variable}: {text!r} is not a whole number ({option})")
    return int(text)


def _patience() -> int:
    return int(os.environ.get("JASPER_PATIENCE", PATIENCE))


def _wait_for_coordinator(host: str, port: int) -> None:
    """Wait until the coordinator answers. JAX itself ends the process with a stack trace when it does not."""
    deadline = time.monotonic() + _patience()
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"the coordinator {host}:{port} could not be reached in {_patience()} s ({error}); is process 0"
                    f" running there, and is the port open? JASPER_PATIENCE gives it more seconds"
                ) from None
        time.sleep(0.5)
