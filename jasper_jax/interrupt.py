"""Being asked to stop: the first SIGTERM or Ctrl-C sets a flag that is read between steps, a second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped with everything saved; run the command again to continue."""


@contextlib.contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and SIGINT make the yielded function return True instead of ending the process."""
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            # Async writes still under way are abandoned; their temporary names are cleaned up by the next start.
            os._exit(EXIT_CODE)
        asked = True
        sys.stderr.write("\nStopping at the next safe point and saving; once more to stop at once.\n")
        sys.stderr.flush()

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
