"""Functions in several processes of this machine, with their results in order.

What is called is a function that is importable by name and arguments that can be pickled, so that a result does not
depend on who makes it. Calls run in this process until a second of work is done; short work then starts no process. The
processes are fresh interpreters and not forks, which a program with threads (JAX has some) must not make; and unlike
``multiprocessing``'s they do not import the caller's main module, which may be a script without a guard.

A worker ends when the connection to this process does, so none outlives it by more than one call.
"""

from __future__ import annotations

import os
import pickle
import queue
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from jasper_jax.runtime.children import python_module
from jasper_jax.runtime.errors import UserError

ALONE = 1.0
"""Seconds of calls in this process before others are started."""
MOST = 8
"""Processes, however many cores there are: one process that gives and takes work keeps no more of them busy."""
AHEAD = 2
"""Calls for each process that a ``map`` is ahead of its caller."""
A = TypeVar("A")
R = TypeVar("R")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Calls functions in ``count`` processes, or in this one if it is 1. Close it after use, also after an error."""

    def __init__(self, count: int | None = None, *, alone: float = ALONE):
        """``count``: None for one process for each core, at most ``MOST``. ``alone``: see ``ALONE``."""
        self.count = min(cores(), MOST) if count is None else count
        self._alone = alone if self.count > 1 else float("inf")
        self._spent = 0.0
        self._threads: ThreadPoolExecutor | None = None
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ahead(self) -> int:
        """How many calls should be waiting or running."""
        return AHEAD * self.count if self._threads else 1

    def submit(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """Call ``function(*arguments)`` in some process; the future has its result or what it raised."""
        if self._threads is None and self._spent >= self._alone:
            self._start()
        if self._threads is not None:
            return self._threads.submit(self._call, function, arguments)
        future: Future[R] = Future()
        began = time.perf_counter()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001  (raised where the result is taken)
            future.set_exception(error)
        self._spent += time.perf_counter() - began
        return future

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> Iterator[R]:
        """``function`` of each item, in order, some items ahead. What the iterator of items raises, it raises after the
        results of the items before."""
        waiting: deque[Future[R]] = deque()
        coming, failure = iter(items), None
        while True:
            while coming is not None and len(waiting) < self.ahead:
                try:
                    waiting.append(self.submit(function, next(coming)))
                except StopIteration:
                    coming = None
                except Exception as error:  # noqa: BLE001
                    coming, failure = None, error
            if not waiting:
                if failure is not None:
                    raise failure
                return
            yield waiting.popleft().result()

    def _start(self) -> None:
        for _ in range(self.count):
            self._all.append(_Worker())
            self._idle.put(self._all[-1])
        self._threads = ThreadPoolExecutor(self.count, "worker")

    def _call(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        worker = self._idle.get()
        try:
            return worker.call(function, arguments)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.end()
        if self._threads is not None:
            self._threads.shutdown()
        self._threads, self._all, self._alone = None, [], float("inf")


class _Worker:
    """A process that runs ``runtime/worker_process.py``, and the connection to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = python_module("jasper_jax.runtime.worker_process", str(theirs.fileno()))
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._connection = Connection(ours.detach())

    def call(self, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
        try:
            self._connection.send_bytes(pickle.dumps((function, arguments), pickle.HIGHEST_PROTOCOL))
            done, result = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            why = f"signal {-code}; is the memory full?" if code < 0 else f"exit code {code}"
            raise UserError(f"a process of {function.__module__} was lost ({why}); run the command again") from None
        if not done:
            raise result
        return result

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
