"""Several processes that train one student: how they find each other, what they say to each other beside the step.

Each process of a TPU pod, of a SLURM job, or of a list of addresses runs the same command. The arrays of a step lie
over the devices of all (``jax.distributed``). What only one may do (write metrics, build the text store, evaluate) is
done by the first, while the others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from jasper_jax.runtime.errors import UserError

COORDINATOR, PROCESSES, PROCESS, AUTO = (
    "JASPER_COORDINATOR",
    "JASPER_PROCESSES",
    "JASPER_PROCESS",
    "JASPER_DISTRIBUTED",
)
PATIENCE = 120
"""Seconds to wait for the others at the start (JASPER_PATIENCE)."""


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Join the other processes, if there are any to be; before anything else touches a device.

    From the arguments, else ``JASPER_COORDINATOR`` (host:port of process 0), ``JASPER_PROCESSES`` and
    ``JASPER_PROCESS``; else, in a SLURM job of several tasks and where ``JASPER_DISTRIBUTED=auto`` (the launcher of TPU
    pods sets it), from what JAX finds in the environment. Otherwise this is the only process.

    Raises:
      UserError: an incomplete or impossible list; the coordinator cannot be reached in time.
    """
    environment = os.environ
    coordinator = coordinator or environment.get(COORDINATOR)
    count = _number(PROCESSES, "--processes", processes)
    index = _number(PROCESS, "--process", process)
    if coordinator is None and count is None and index is None:
        in_slurm = int(environment.get("SLURM_NTASKS", "1") or 1) > 1 and "SLURM_PROCID" in environment
        if in_slurm or environment.get(AUTO) == "auto":
            _initialize()
        return
    if coordinator is None or count is None or index is None:
        raise UserError(
            f"several processes: --coordinator ({COORDINATOR}), --processes ({PROCESSES}) and --process ({PROCESS}) go"
            f" together; seen: {coordinator}, {count}, {index}"
        )
    if not 0 <= index < count:
        raise UserError(f"--process {index}: allowed are 0 to {count - 1}, there being --processes {count}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {coordinator}: host:port of process 0 is needed, e.g. 10.0.0.1:8476")
    if count == 1:
        return
    if index:
        _await(host, int(port))
    _initialize(coordinator_address=coordinator, num_processes=count, process_id=index)


def _number(variable: str, option: str, given: int | None) -> int | None:
    if given is not None:
        return given
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{variable}: {text!r} is not a whole number ({option})")
    return int(text)


def _patience() -> int:
    return int(os.environ.get("JASPER_PATIENCE", PATIENCE))


def _await(host: str, port: int) -> None:
    """Until the coordinator answers: what JAX does when it does not is to end the process with a stack trace."""
    until = time.monotonic() + _patience()
    while True:
        try:
            with socket.create_connection((host, port), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"the coordinator {host}:{port} could not be reached in {_patience()} s ({error}); is process 0"
                    f" running there, and is the port open? JASPER_PATIENCE gives it more seconds"
                ) from None
        time.sleep(0.5)


def _initialize(**known: Any) -> None:
    import jax

    try:
        # At the end all wait for the first, which may be evaluating for hours.
        jax.distributed.initialize(**known, initialization_timeout=_patience(), shutdown_timeout_seconds=7 * 86400)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"several processes: JAX could not join them: {first}") from error
    _state.joined = True


@dataclasses.dataclass
class _State:
    joined: bool = False
    alone: bool = False


_state = _State()


def count() -> int:
    """How many processes there are."""
    if not _state.joined or _state.alone:
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    if not _state.joined or _state.alone:
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that does what only one may do."""
    return index() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works as if it were the only one, on its own devices."""
    _state.alone = True
    try:
        yield
    finally:
        _state.alone = False


def is_alone_of_several() -> bool:
    """Whether there are others, of whom this process takes no notice now."""
    return _state.joined and _state.alone


def barrier(what: str) -> None:
    """Wait until all processes are here."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def first_does(action: Callable[[], Any]) -> None:
    """Process 0 does it, the others wait; what it refuses, all refuse.

    Raises:
      UserError: as ``action`` does, in every process.
    """
    if count() == 1:
        action()
        return
    message = ""
    if is_first():
        try:
            action()
        except UserError as error:
            message = str(error) or type(error).__name__
    (said, *_) = _gather_text(message)
    if said:
        raise UserError(said)


def gather(values: np.ndarray) -> np.ndarray:
    """``[n, ...]`` of each process, the same shape in all -> ``[processes, n, ...]`` in every process."""
    if count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).reshape(count(), *values.shape)


def from_first(tree: Any) -> Any:
    """A tree of host arrays as process 0 has it; the others give one of the same shapes."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def host_copy(tree: Any) -> Any:
    """Arrays that lie over the devices of all processes -> whole host arrays in every process."""
    import jax

    if count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def refuse_unlike(recipe: Mapping[str, Any]) -> None:
    """UserError in every process when they do not run the same recipe with the same versions, naming both.

    Called before anything else that all have to do together, which would hang or go wrong in ways hard to read.
    """
    if count() == 1:
        return
    own = {"recipe": recipe, "versions": versions()}
    said = _gather_text(json.dumps(own, sort_keys=True))
    from jasper_jax.runtime.files import differences

    for other, text in enumerate(said):
        if found := differences(json.loads(said[0]), json.loads(text), ""):
            raise UserError(
                f"processes 0 and {other} do not run the same: {'; '.join(found[:3])}"
                f"{' and more' if found[3:] else ''}; start all with one recipe and one installation"
            )


def versions() -> dict[str, str]:
    """What has to be the same in every process."""
    packages = {name: version(name) for name in ("jasper-jax", "jax", "jaxlib", "flax", "optax")}
    return {"python": platform.python_version(), **packages}


def _gather_text(text: str) -> list[str]:
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = gather(np.array([len(data)], np.int32))[:, 0]
    if not sizes.any():
        return [""] * len(sizes)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    return [bytes(row[:size]).decode() for row, size in zip(gather(padded), sizes.tolist())]
