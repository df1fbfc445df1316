"""Being asked to stop: the first SIGTERM or Ctrl-C is obeyed at the next safe point, a second ends the process at once.

Batch systems and launchers may deliver one request twice, to the process and through its parent (SLURM signals a job's
processes, and srun passes its own signal on): a SIGTERM that follows another within ``ECHO`` seconds is the same one.

Training stops between two steps and saves. Work that is whole or not there in any case (a shard, an evaluation, an
export) is left where it stands.

Of several processes any may be asked: JAX passes a SIGTERM on, and all stop after the same step.

Python runs its signal handlers in the main thread and between two of its instructions, that is, not before a long
compilation is over. The second signal must not wait for that, so a thread of its own hears the signals and counts.
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
"""EX_TEMPFAIL: stopped with everything saved; run the command again to continue."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 5.0
"""Seconds in which a second SIGTERM says nothing new."""


class Stop:
    """Called after each step, with its number, it says whether to stop there: somebody asked to."""

    def __init__(self) -> None:
        self._asked = self._immediately = False

    def __call__(self, step: int = 0) -> bool:
        if processes.count() > 1:
            from jax.experimental import multihost_utils

            self._asked = self._asked or multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    @contextlib.contextmanager
    def immediately(self) -> Iterator[None]:
        """Within the block being asked to stop raises :class:`Interrupted` on the spot: nothing there needs saving."""
        if self._asked:
            raise Interrupted
        self._immediately = True
        try:
            yield
        finally:
            self._immediately = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            return  # the listener ends the process
        self._asked = True
        if self._immediately:
            raise Interrupted
        sys.stderr.write("\nStopping after this step and saving; once more to stop at once.\n")
        sys.stderr.flush()


@contextlib.contextmanager
def stop_flag() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT are answered by the yielded :class:`Stop`; the second: exit code 128 + n."""
    stop = Stop()
    if processes.count() > 1:  # SIGTERM is JAX's, which tells the other processes
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
        # Asked to stop, the process is about to end: the last cleaning up may still be cut short by a second signal.
        if not stop():
            signal.set_wakeup_fd(told_before)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(tell)
            listener.join()
            os.close(hear)


def _end_at_the_second(hear: int) -> None:
    """Read signal numbers from ``hear`` until it is closed; end the process at the second that asks to stop.

    Writes still under way are abandoned; their temporary names are cleaned up by the next start.
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
