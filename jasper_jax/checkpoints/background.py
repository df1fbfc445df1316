"""Work beside the train loop, one piece at a time, whose failure every process raises at the same point.

The work itself needs no agreement. Its end does, where there are several processes: one that raised while the others
went on would leave them waiting in their next collective. They compare how far they are in ``settle``, at steps that
all know, and in ``wait``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed
from jasper_jax.runtime.progress import say

_UNDER_WAY, _DONE, _REFUSED, _NOT_WRITTEN = range(4)
_TEXT = 2000
"""Bytes of a message that processes tell each other."""
_LOOK = 0.1
"""Seconds between two comparisons while all wait."""


class Background:
    """A thread for one piece of work at a time. All methods are for the thread of the train loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._work: list[Future[None]] = []
        """The work whose end has not been seen yet: none or one."""
        self._calls = 0
        weakref.finalize(self, _tell, self._work)

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work``; the one before has been waited for."""
        assert not self._work
        self._work.append(self._thread.submit(work))
        self._calls = 0

    def fail(self, error: Exception) -> None:
        """As ``start``, with work that has raised ``error`` already."""
        assert not self._work
        failed: Future[None] = Future()
        failed.set_exception(error)
        self._work.append(failed)
        self._calls = 0

    def settle(self) -> None:
        """Raise what the work raised, if it has ended; called after every step, by all processes.

        In one process this is a look at a flag. Several compare at the 1st, 2nd, 4th, 8th, ... call after the start: a
        comparison waits for the step under way, and there are few of them however long the work takes.
        """
        self._calls += 1
        if self._work and (processes.count() == 1 or self._calls & (self._calls - 1) == 0):
            self._look()

    def wait(self) -> None:
        """Wait for the end of the work, in all processes; raises what it raised."""
        while self._work:
            wait(self._work, timeout=None if processes.count() == 1 else _LOOK)
            self._look()

    def _look(self) -> None:
        """Forget the work if it has ended in all processes; raise in all what it raised in one."""
        (work,) = self._work
        if processes.count() == 1:
            if work.done():
                self._work.clear()
                work.result()
            return
        error = work.exception() if work.done() else None
        said = processes.gather(_report(work.done(), error))
        failed = [row for row in said if row[0] in (_REFUSED, _NOT_WRITTEN)]
        if failed or all(row[0] == _DONE for row in said):
            self._work.clear()
        if error is not None and not isinstance(error, UserError):
            raise error  # a defect, with its own traceback; the others end on what it says
        if failed:
            kind = UserError if failed[0][0] == _REFUSED else WriteFailed
            raise kind(bytes(failed[0][1:]).rstrip(b"\0").decode(errors="ignore")) from error


def _report(done: bool, error: BaseException | None) -> np.ndarray:
    """How far this process is, as ``[1 + _TEXT]`` bytes: the state, then what it would raise."""
    if error is None:
        state, text = (_DONE if done else _UNDER_WAY), b""
    else:
        refused = isinstance(error, UserError) and not isinstance(error, WriteFailed)
        state, text = (_REFUSED if refused else _NOT_WRITTEN), (str(error) or type(error).__name__).encode()[:_TEXT]
    report = np.zeros(1 + _TEXT, np.uint8)
    report[0] = state
    report[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    return report


def _tell(work: list[Future[None]]) -> None:
    """At the end of the program: say what went wrong in work whose end nobody has seen."""
    for one in work:
        one.add_done_callback(lambda ended: ended.exception() and say(f"jasper: {ended.exception()}"))
