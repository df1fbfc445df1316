"""Several processes that train one student: which of them this is, and what they exchange outside the train step.

They run the same command, and have found each other (``joining``) before it begins. The arrays of a step are sharded
over the devices of all processes (``jax.distributed``). Process 0 does what only one process may do (write
metrics, build the text store, evaluate); the others wait for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from jasper_jax.runtime.errors import Interrupted, UserError, first_line

PATIENCE_AFTER_ERROR = 30.0
"""Seconds to wait for the others after an error here, which they may not know of."""
_STOPPED = "\0stopped"
"""What a process that was asked to stop tells the others."""
T = TypeVar("T")


@dataclasses.dataclass
class _State:
    joined: bool = False
    alone: bool = False
    """The others have ended."""
    local: bool = False
    """Inside :func:`_local_work`."""
    stopping: bool = False
    """Local work is to be interrupted."""


_state = _State()


def join(patience: int, **settings: Any) -> None:
    """Join the other processes of JAX's ``settings``, which come within ``patience`` seconds (``joining.connect`` calls
    it). UserError: they do not."""
    import jax

    try:
        # At the end all processes wait for the last of them.
        jax.distributed.initialize(**settings, initialization_timeout=patience, shutdown_timeout_seconds=7 * 86400)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"several processes: JAX could not join them: {first_line(error)}") from error
    _state.joined = True


def count() -> int:
    """Number of processes; 1 after :func:`go_on_alone`."""
    if not _state.joined or _state.alone:
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """Index of this process, from 0."""
    if not _state.joined or _state.alone:
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this is process 0, which does what only one process may do."""
    return index() == 0


def go_on_alone() -> bool:
    """All processes call it where only process 0 has something left to do: True there, and from then on it is the only
    one. The others get False and are to end, with exit code 0, so that their machines are free.

    The memory of devices stays as it is, and computations on this process's own devices go on.
    """
    if count() == 1:
        return True
    if not is_first():
        sys.stderr.write(f"Process {index()} of {count()} is done; process 0 finishes alone.\n")
        return False
    import jax

    jax.distributed.shutdown()  # returns when the others call it, in :func:`leave`
    _state.alone = True
    return True


def end_soon(code: int) -> None:
    """Call it after an error: ends this process with ``code`` if the others do not end as well.

    JAX lets the processes end together. After an error in one of them alone, that one would wait for the others, and
    they for its part of a step. Once it is gone, JAX ends them.
    """
    if count() > 1:
        timer = threading.Timer(PATIENCE_AFTER_ERROR, os._exit, [code])
        timer.daemon = True
        timer.start()


def leave(code: int) -> None:
    """At the end of a command: ends this process with ``code`` when the others have come to their end; a single one
    goes on.

    Python's own end is left out: it takes JAX's backend apart beside threads that still listen for requests to stop,
    and a process that was to end with 75 sometimes ended with a segmentation fault.
    """
    if _state.joined:
        sys.stdout.flush()
        sys.stderr.flush()
        if not _state.alone:
            import jax

            jax.distributed.shutdown()
        os._exit(code)


def barrier(name: str) -> None:
    """Wait until all processes have reached the barrier ``name``."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def first_does(action: Callable[[], T]) -> T | None:
    """The result of ``action`` in process 0, while the others wait for it and get None. Its failure, whatever it is,
    ends all of them.

    Raises:
      Interrupted: it was asked to stop.
      UserError: ``action`` failed. A ``UserError`` keeps its text; another exception is named with its type and
        message, and stays the cause of the error in its process. A single process raises what ``action`` raised.
    """
    return _together(action, takes_part=is_first())


def first_says(question: Callable[[], bool]) -> bool:
    """Process 0's answer, in every process. Raises as :func:`first_does`."""
    return bool(from_first(np.array(bool(first_does(question)))))


def all_do(action: Callable[[], T]) -> T:
    """Run ``action``, which exchanges nothing, in every process, and wait for all. Raises as :func:`first_does`, in
    every process, if it fails in one."""
    return _together(action, takes_part=True)


def _together(action: Callable[[], Any], *, takes_part: bool) -> Any:
    if count() == 1:
        return action()
    result, failure = None, None
    if takes_part:
        try:
            with _local_work():
                result = action()
        except BaseException as error:  # noqa: BLE001  (the other processes wait for the answer in any case)
            failure = error
    lines = gather_text(_failure_line(failure))
    if isinstance(failure, (UserError, Interrupted)) or not isinstance(failure, Exception | None):
        raise failure
    if failed := [line for line in lines if line not in ("", _STOPPED)]:
        raise UserError(_failure_line(failure) or failed[0]) from failure
    if _STOPPED in lines:
        raise Interrupted
    return result


def _failure_line(failure: BaseException | None) -> str:
    if failure is None:
        return ""
    if isinstance(failure, Interrupted):
        return _STOPPED
    if isinstance(failure, UserError):
        return str(failure) or type(failure).__name__
    return f"process {index()} failed: {type(failure).__name__}: {failure}; --debug shows its traceback there"


@contextlib.contextmanager
def _local_work() -> Iterator[None]:
    """Within the block, which exchanges nothing with other processes, :func:`interrupt_local_work` takes effect."""
    _state.local = True
    try:
        if _state.stopping:
            raise Interrupted
        yield
    finally:
        _state.local = False


def interrupt_local_work(stopping: bool = True) -> None:
    """Raise :class:`Interrupted` if this process works by itself, else when it begins to: never where the others
    would wait for its part of an exchange. Call it in the main thread; ``stopping`` False takes the request back."""
    before, _state.stopping = _state.stopping, stopping
    if stopping and not before and _state.local:
        raise Interrupted


def is_stop_noticed() -> bool:
    """Whether one of several processes got a SIGTERM. JAX's preemption service (``xla::PreemptionSyncManager``) hears
    it and sets this key for all."""
    import jax
    from jax._src import distributed

    client = distributed.global_state.client
    try:
        return client is not None and bool(client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE"))
    except jax.errors.JaxRuntimeError:  # no such key
        return False


def gather(values: np.ndarray) -> np.ndarray:
    """``values`` ``[n, ...]`` of each process, of one shape -> ``[processes, n, ...]`` in every process."""
    if count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).reshape(count(), *values.shape)


def from_first(tree: Any) -> Any:
    """Process 0's tree of host arrays, in every process; the others pass a tree of the same shapes."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def host_copy(tree: Any) -> Any:
    """Arrays sharded over the devices of all processes -> complete host arrays in every process."""
    import jax

    if count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def gather_text(text: str) -> list[str]:
    """The texts of all processes, in every process; half surrogates (from file names) become question marks."""
    data = np.frombuffer(text.encode(errors="replace"), np.uint8)
    sizes = gather(np.array([len(data)], np.int32))[:, 0]
    if not sizes.any():
        return [""] * len(sizes)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    return [bytes(row[:size]).decode() for row, size in zip(gather(padded), sizes.tolist())]
