"""A background task of the train loop whose failure all processes raise at the same step.

If one process raised while the others went on, they would wait for it in their next collective. So the processes
compare the states of their tasks: in ``settle`` after the same steps, and in ``wait``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed
from jasper_jax.runtime.progress import say

_RUNNING, _DONE, _REFUSED, _NOT_WRITTEN = range(4)
_TEXT = 2000
"""Bytes of an error message that processes exchange."""
_POLL = 0.1
"""Seconds between two comparisons in ``wait``."""


class Background:
    """A thread for one task at a time. Call all methods from the thread of the train loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._tasks: list[Future[None]] = []
        """The task whose end has not been handled yet: none or one."""
        self._calls = 0
        weakref.finalize(self, _report_unhandled, self._tasks)

    def start(self, task: Callable[[], None]) -> None:
        """Start ``task``; the previous one has been waited for."""
        assert not self._tasks
        self._tasks.append(self._thread.submit(task))
        self._calls = 0

    def settle(self) -> None:
        """Raise what the task raised, if it has ended; all processes call this after every step.

        A single process checks a flag. Several compare at the 1st, 2nd, 4th, 8th, ... call after the start: each
        comparison waits for the current step, so there must be few of them however long the task takes.
        """
        self._calls += 1
        if self._tasks and (processes.count() == 1 or self._calls & (self._calls - 1) == 0):
            self._check()

    def wait(self) -> None:
        """Wait until the task has ended in all processes; raises what it raised."""
        while self._tasks:
            wait(self._tasks, timeout=None if processes.count() == 1 else _POLL)
            self._check()

    def _check(self) -> None:
        """Forget the task if it has ended in all processes; raise in all what it raised in one."""
        (task,) = self._tasks
        if processes.count() == 1:
            if task.done():
                self._tasks.clear()
                task.result()
            return
        error = task.exception() if task.done() else None
        states = processes.gather(_state(task.done(), error))
        failed = [row for row in states if row[0] in (_REFUSED, _NOT_WRITTEN)]
        if failed or all(row[0] == _DONE for row in states):
            self._tasks.clear()
        if error is not None and not isinstance(error, UserError):
            raise error  # a defect, with its own traceback; the others raise its message
        if failed:
            kind = UserError if failed[0][0] == _REFUSED else WriteFailed
            raise kind(bytes(failed[0][1:]).rstrip(b"\0").decode(errors="ignore")) from error


def _state(done: bool, error: BaseException | None) -> np.ndarray:
    """This process's state and error message, ``[1 + _TEXT]`` bytes."""
    if error is None:
        state, text = (_DONE if done else _RUNNING), b""
    else:
        refused = isinstance(error, UserError) and not isinstance(error, WriteFailed)
        state, text = (_REFUSED if refused else _NOT_WRITTEN), (str(error) or type(error).__name__).encode()[:_TEXT]
    return np.frombuffer(bytes([state]) + text.ljust(_TEXT, b"\0"), np.uint8)


def _report_unhandled(tasks: list[Future[None]]) -> None:
    """When the program ends, print the error of a task whose end was not handled."""
    for task in tasks:
        task.add_done_callback(lambda ended: ended.exception() and say(f"jasper: {ended.exception()}"))
