"""Being asked to stop: the first SIGTERM or Ctrl-C is obeyed at the next safe point, a second ends the process at once.

Training stops between two steps and saves. Work that is whole or not there in any case (a shard, an evaluation, an
export) is left where it stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from jasper_jax.errors import Interrupted

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped with everything saved; run the command again to continue."""


class Stop:
    """Called, it says whether somebody asked to stop."""

    def __init__(self) -> None:
        self._asked = self._immediately = False

    def __call__(self) -> bool:
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
            # Writes still under way are abandoned; their temporary names are cleaned up by the next start.
            os._exit(EXIT_CODE)
        self._asked = True
        if self._immediately:
            raise Interrupted
        sys.stderr.write("\nStopping after this step and saving; once more to stop at once.\n")
        sys.stderr.flush()


@contextlib.contextmanager
def stop_flag() -> Iterator[Stop]:
    """Within the block SIGTERM and SIGINT are answered by the yielded :class:`Stop`."""
    stop = Stop()
    before = {s: signal.signal(s, stop._ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
