"""A thread that reports a process whose steps have stopped: in a group that hangs, which process hangs where."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from types import TracebackType

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError

MINUTES, VARIABLE = 15.0, "JASPER_WATCHDOG_MINUTES"
"""Minutes without a step after which a process reports itself; the environment variable overrides it, 0 turns it
off. Compiling and evaluating take time too."""


def watchdog_seconds() -> float:
    """UserError: the variable is not a number of at least 0."""
    text = os.environ.get(VARIABLE, str(MINUTES))
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < 1e6:
        raise UserError(f"{VARIABLE}: expected minutes, 0 for no watchdog, got {text!r}")
    return 60 * minutes


class Watchdog:
    """While it is entered, it writes a report to standard error after every ``seconds`` without a step: process, stage,
    last step, and the stacks of all threads, that of training last: what it waits for is often a thread that loads
    batches or writes a checkpoint. Nothing is ended."""

    def __init__(self, stage: str, step: int, seconds: float | None = None):
        """``step``: done so far. ``seconds``: None for the environment's."""
        self._stage, self._step = stage, step
        self._seconds = watchdog_seconds() if seconds is None else seconds
        self._last = self._reported = time.monotonic()
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._process = processes.index()  # asked here: not from the thread
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """A step is done."""
        self._step, self._last = step, time.monotonic()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds / 10):
            now = time.monotonic()
            if now - max(self._last, self._reported) >= self._seconds:
                self._reported = now
                sys.stderr.write(self.report(now - self._last))
                sys.stderr.flush()

    def report(self, idle: float) -> str:
        """What is written after ``idle`` seconds without a step."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        frames = sys._current_frames()
        order = sorted(frames.keys() - {threading.get_ident()}, key=lambda ident: ident == self._watched)
        stacks = [
            f"thread {'of training' if ident == self._watched else names.get(ident, ident)}:\n"
            + "".join(traceback.format_stack(frames[ident]))
            for ident in order
        ]
        return (
            f"process {self._process}: no step for {idle / 60:,.1f} minutes; {self._stage}, {self._step} steps done;"
            f" {VARIABLE}=0 turns this report off. Its threads are at:\n{''.join(stacks)}"
        )
