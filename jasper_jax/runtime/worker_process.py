"""A process of :class:`jasper_jax.runtime.workers.Workers`: takes (function, arguments), answers (True, result) or
(False, exception), until its connection ends. Run as a module with the connection's file descriptor."""

from __future__ import annotations

import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any


def answers(connection: Connection) -> None:
    """Answer the calls that come over ``connection`` until it ends."""
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, Any] = (True, function(*arguments))
        except Exception as error:  # noqa: BLE001  (raised where the result is taken)
            answer = (False, error)
        try:
            connection.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
        except (BrokenPipeError, ConnectionResetError):
            return


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a batch system: the caller decides, and ends us
        signal.signal(number, signal.SIG_IGN)
    answers(Connection(int(sys.argv[1])))
