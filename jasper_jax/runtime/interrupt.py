"""Requests to stop: the first SIGTERM or Ctrl-C stops at the next safe point, a second ends the process at once.

That is how a command stops, whose process ends with it (:func:`process_of_command`). Called from Python, in a notebook
or a user's program, the first Ctrl-C saves and raises KeyboardInterrupt, the second raises it at once; the process goes
on with its own signal handlers.

Batch systems may deliver one request twice, to the process and through its parent (SLURM signals a job's processes, and
srun forwards its own signal). So a SIGTERM within ``ECHO`` seconds of another counts as the same request.

Training stops between two steps and saves. Work whose results are written atomically (a shard, an evaluation, an
export) is abandoned on the spot.

If there are several processes, any of them may get the request: JAX tells all of a SIGTERM. In training all stop after
the same step; elsewhere each abandons what it does by itself, and all end.

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
WATCH = 0.5
"""Seconds between two looks for a request that reached another process."""
_CONTINUES = "stopped and saved; the same call continues"


_ends_with_command = False
"""Whether this process is a command's: it ends soon after a request to stop, so handlers need not be restored."""


@contextlib.contextmanager
def process_of_command() -> Iterator[None]:
    """Within the block, the process is that of one command and ends with it."""
    global _ends_with_command
    before, _ends_with_command = _ends_with_command, True
    try:
        yield
    finally:
        _ends_with_command = before


class Stop:
    """Whether a stop was requested. Call it once after each step."""

    def __init__(self) -> None:
        self._calls = 0
        self._asked = self._immediately = self._noticed = False
        self._signal: int | None = None
        if processes.count() > 1:
            self._asked = self._reached()

    def __call__(self, _: int = 0) -> bool:
        if processes.count() > 1:
            self._calls += 1
            self._asked = self._asked or self._reached()
        return self._asked

    def _reached(self) -> bool:
        """Whether all processes stop after this number of calls: JAX chooses one that none of them has made.

        The count starts at 0 before any work, so that a request during that work is obeyed after the first step.
        """
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(self._calls)

    @contextlib.contextmanager
    def immediately(self) -> Iterator[None]:
        """Within the block, which has nothing to save, a request to stop raises :class:`Interrupted` at once; in
        several processes, where each works by itself (``processes.all_do``, ``first_does``)."""
        if self._asked:
            raise Interrupted
        with self._watching() if processes.count() > 1 else contextlib.nullcontext():
            self._immediately = True
            try:
                yield
            finally:
                self._immediately = False

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Within the block, a thread asks JAX for the request, which may have reached another process."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(WATCH):
                if processes.is_stop_noticed():
                    self._noticed = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # runs ``_interrupt`` there
                    return

        watcher = threading.Thread(target=watch, name="stop requests", daemon=True)
        watcher.start()
        try:
            yield
        except Interrupted:
            self()  # waits until JAX's threads have agreed, which must not go on while the process ends
            raise
        finally:
            ended.set()
            watcher.join()
            processes.interrupt_local_work(False)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handles SIGINT in several processes: of the watching thread, or of a terminal."""
        if self._noticed:
            processes.interrupt_local_work()
        else:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX hears it

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked:
            if not _ends_with_command and not (signum == self._signal == signal.SIGTERM):
                raise KeyboardInterrupt("stopped without saving; the steps since the last checkpoint are lost")
            return  # of a command, the listening thread ends the process
        self._asked, self._signal = True, signum
        if self._immediately:
            raise Interrupted
        sys.stderr.write("\nStopping after this step and saving; repeat to stop at once.\n")
        sys.stderr.flush()


@contextlib.contextmanager
def stop_flag() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT set the yielded :class:`Stop`; the second exits with 128 + its number.

    Called from Python, SIGINT becomes a KeyboardInterrupt and the handlers are restored. Outside the main thread none
    are set, since Python delivers signals to that one alone.
    """
    stop = Stop()
    if processes.count() > 1:  # JAX handles SIGTERM and notifies the other processes
        before_interrupt = signal.signal(signal.SIGINT, stop._interrupt)
        try:
            yield stop
        finally:
            signal.signal(signal.SIGINT, before_interrupt)
    elif _ends_with_command:
        with _handled(stop), _listening(stop):
            yield stop
    elif threading.current_thread() is not threading.main_thread():
        yield stop
    else:
        with _handled(stop):
            try:
                yield stop
            except Interrupted as request:
                if stop._signal == signal.SIGINT:
                    raise KeyboardInterrupt(str(request) or _CONTINUES) from None
                raise


@contextlib.contextmanager
def _handled(stop: Stop) -> Iterator[None]:
    """Within the block ``stop`` handles SIGTERM and SIGINT.

    A command that was asked to stop keeps these handlers: a second signal may still cut its cleanup short, and an echo
    of the first SIGTERM may not.
    """
    before = {number: signal.signal(number, stop._ask) for number in SIGNALS}
    try:
        yield
    finally:
        if not (_ends_with_command and stop()):
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _listening(stop: Stop) -> Iterator[None]:
    """Within the block, and after it if ``stop`` was requested, a thread ends the process at the second request."""
    hear, tell = os.pipe()
    os.set_blocking(tell, False)
    told_before = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    listener = threading.Thread(target=_end_at_the_second, args=(hear,), name="signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        if not stop():
            signal.set_wakeup_fd(told_before)
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
