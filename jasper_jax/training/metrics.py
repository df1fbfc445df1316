"""Metrics of a run as JSON lines, one object per event; the sinks of ``loggers.py`` are optional.

On resume the file is truncated to the checkpoint's step, so that no step is in it twice. Of several processes the
first alone writes the file and opens the sinks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from jasper_jax.runtime import processes
from jasper_jax.runtime.files import naming, write_atomic
from jasper_jax.training.events import read_events
from jasper_jax.training.loggers import Sink
from jasper_jax.training.utilisation import Goodput


class Metrics:
    """Appends events to ``metrics.jsonl`` and forwards numbers to the sinks."""

    def __init__(self, path: Path, sinks: list[Sink], *, keep_before: tuple[int, int]):
        """``keep_before``: (stage index, step) of the checkpoint resumed from; later events are dropped, and at step 0
        the stage's evaluation before its first step, which is made again.

        Raises:
          UserError: the file is damaged, in every process.
        """
        self.path, self.sinks = path, sinks
        self.goodput = Goodput()
        self._file: IO[str] | None = None
        processes.first_does(lambda: self._open(keep_before))

    def _open(self, keep_before: tuple[int, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [event for event in read_events(self.path) if _is_before(event, keep_before)]
        write_atomic(self.path, "".join(json.dumps(event) + "\n" for event in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self.goodput = Goodput.of(kept)

    def write(self, event: Mapping[str, Any]) -> None:
        """Write one event; its numbers, at the top level and in ``terms``, also go to the sinks."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise naming(error, self.path) from None
        step = event.get("global_step")
        if step is not None and self.sinks:
            flat = {**{k: v for k, v in event.items() if k != "terms"}, **event.get("terms", {})}
            numbers = {f"{event['event']}/{k}": float(v) for k, v in flat.items() if isinstance(v, int | float)}
            for sink in self.sinks:
                sink.log(int(step), numbers)

    def close(self) -> None:
        """Close the file and the sinks. ``write`` has already reported a full disk."""
        with contextlib.suppress(OSError):
            if self._file:
                self._file.close()
        for sink in self.sinks:
            sink.close()


def _is_before(event: Mapping[str, Any], position: tuple[int, int]) -> bool:
    at = event.get("stage_index", -1), event.get("step", 0)
    return at < position or (at == position and position[1] > 0)
