"""The connection of a driver to a Ray cluster: joining it, and whether its head is still there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from jasper_jax.runtime.errors import Interrupted, UserError, first_line

LOCAL, AUTO = "local", "auto"
REACH = 10.0
"""Seconds in which the address must answer."""
HEADLESS = 20.0
"""Seconds without the head before that is the end. Ray ends the process after 60, without a word to Python."""


def refuse_without_ray() -> None:
    """UserError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--ray needs the extra ray, which is not installed: pip install 'jasper-jax[ray]'")


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Within the block this process drives the Ray cluster at ``address``; yields the module ``ray``.

    ``address``: ``host:port`` of its head, ``auto`` (``RAY_ADDRESS``, or the cluster of which this machine is a node),
    or ``local``: a cluster of this machine alone, which ends with the block or the process.

    Raises:
      UserError: Ray is not installed; the address is none, does not answer, or has another version.
    """
    refuse_without_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    _refuse_unreachable(address)
    import ray  # pyright: ignore[reportMissingImports]
    from ray._private import worker  # pyright: ignore[reportMissingImports]

    # Of a lost node Ray prints the last twenty lines of a log; the scheduler says it in one.
    printing, worker.print_to_stdstream = worker.print_to_stdstream, lambda *_, **__: None
    try:
        _initialize(ray, address)
        with interrupts():
            yield ray
    finally:
        ray.shutdown()
        worker.print_to_stdstream = printing


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Within the block, what a signal handler raises in Ray's C code is raised as it is. Python makes a SystemError of
    it where that code returns a result all the same."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Interrupted | KeyboardInterrupt):
            raise error.__cause__ from None
        raise


def _initialize(ray: Any, address: str) -> None:
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # Ray has workers import from the driver's current folder, in which may be anybody's data with a json.py.
        with contextlib.chdir("/"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX is imported, but has no threads yet
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        what = " ".join(str(error).split()) or first_line(error)
        remedy = "run on a node of the cluster, with its versions of Python and Ray"
        raise UserError(f"--ray {address}: Ray could not join the cluster ({what[:400]}); {remedy}") from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own


def _refuse_unreachable(address: str) -> None:
    """UserError unless ``address`` can be the head of a cluster. Ray itself tries for minutes, and says so in logs."""
    if address in (LOCAL, AUTO):
        return
    parts = re.fullmatch(r"([^:/=\s]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", address)
    if not parts or not 0 < int(parts[2]) < 65536:
        raise UserError(
            f"--ray {address}: expected host:port of the cluster's head, auto, or nothing for this machine; run on a"
            " node of the cluster, which sees the disk of the others (ray:// does not)"
        )
    remedy = "is the head running there (ray start --head), and is the port open?"
    try:
        with socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=REACH) as connection:
            answers = bool(os.environ.get("RAY_USE_TLS")) or _speaks_grpc(connection)
    except OSError as error:
        raise UserError(f"--ray {address}: cannot be reached ({error}); {remedy}") from None
    if not answers:
        raise UserError(f"--ray {address}: what answers there is no Ray cluster; {remedy}")


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether HTTP/2 answers, of which gRPC consists: its first frame is SETTINGS, of type 4."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    answer = b""
    while len(answer) < 9 and (received := connection.recv(9 - len(answer))):
        answer += received
    return len(answer) == 9 and answer[3] == 4


class Head:
    """The head of a cluster. Calls that need it wait for it in C code, which nothing interrupts, so it is asked for
    before."""

    def __init__(self, address: str):
        self._address, self._seen = address, time.monotonic()

    def answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
        except OSError:
            return False
        self._seen = time.monotonic()
        return True

    def refuse_lost(self) -> None:
        """UserError: it has not answered for some time."""
        if time.monotonic() - self._seen > HEADLESS:
            raise UserError(
                f"ray: the head of the cluster, {self._address}, has not answered for {HEADLESS:.0f} s; start it and"
                f" its nodes again, then run the same command to continue"
            )
