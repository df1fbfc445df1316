"""Requests to stop: the first SIGTERM or Ctrl-C stops at the next safe point, a second ends the process at once.

Batch systems may deliver one request twice, to the process and through its parent (SLURM signals a job's processes, and
srun forwards its own signal). So a SIGTERM within ``ECHO`` seconds of another counts as the same request.

Training stops between two steps and saves. Work whose results are written atomically (a shard, an evaluation, an
export) is abandoned on the spot.

If there are several processes, any of them may get the request: JAX forwards a SIGTERM, and all stop after the same
step.

Python runs signal handlers in the main thread between two bytecode instructions, hence not during a long compilation.
The second signal must not wait for that, so a separate thread listens for signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import Interrupted

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped and saved; run the command again to continue."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 5.0
"""Seconds in which a second SIGTERM counts as the first one."""


class Stop:
    """Whether a stop was requested. Call it once after each step, with the step's number."""

    def __init__(self) -> None:
        self._asked = self._immediately = False

    def __call__(self, step: int = 0) -> bool:
        if processes.count() > 1:
            from jax.experimental import multihost_utils

            self._asked = self._asked or multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @contextlib.contextmanager
    def immediately(self) -> Iterator[None]:
        """Within the block, which has nothing to save, a request to stop raises :class:`Interrupted` at once."""
        if self._asked:
            raise Interrupted
        self._immediately = True
        try:
            yield
        finally:
            self._immediately = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            return  # the listening thread ends the process
        self._asked = True
        if self._immediately:
            raise Interrupted
        sys.stderr.write("\nStopping after this step and saving; repeat to stop at once.\n")
        sys.stderr.flush()


@contextlib.contextmanager
def stop_flag() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT set the yielded :class:`Stop`; the second exits with 128 + its number."""
    stop = Stop()
    if processes.count() > 1:  # JAX handles SIGTERM and notifies the other processes
        before_interrupt = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        try:
            yield stop
        finally:
            signal.signal(signal.SIGINT, before_interrupt)
        return
    before = {s: signal.signal(s, stop._ask) for s in SIGNALS}
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    told_before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    listener = threading.Thread(target=_end_at_the_second, args=(hear,), name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        # After a request to stop the process is about to end: a second signal may still cut its cleanup short.
        if not stop():
            signal.set_wakeup_fd(told_before)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(tell)
            listener.join()
            os.close(hear)


def _end_at_the_second(hear: int) -> None:
    """Read signal numbers from the pipe ``hear`` until it is closed; end the process at the second request to stop.

    Unfinished writes are abandoned; the next start deletes their temporary files.
    """
    first: tuple[int, float] | None = None
    while data := os.read(hear, 64):
        for signum in data:
            if signum not in SIGNALS:
                continue
            if first is None:
                first = signum, time.monotonic()
            elif not (signum == first[0] == signal.SIGTERM and time.monotonic() - first[1] < ECHO):
                os._exit(128 + signum)
