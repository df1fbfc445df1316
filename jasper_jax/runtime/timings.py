"""Where the time of a run went: seconds per phase, summed over all commands on its folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from jasper_jax.runtime import processes
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.json_text import parse_json


def duration(seconds: float) -> str:
    """``80 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


class Timings:
    """Seconds by phase, kept in ``timings.json`` of the run folder; of several processes the first writes its own."""

    def __init__(self, folder: Path, process_index: int = 0):
        """``process_index``: of processes that share the folder without having joined (``jasper embed``)."""
        self._path = folder / "timings.json"
        self._writes = processes.is_first() and process_index == 0
        self.seconds: dict[str, float] = {}
        if self._path.is_file():
            try:
                self.seconds = {str(k): float(v) for k, v in parse_json(read_record_bytes(self._path)).items()}
            except (OSError, ValueError, AttributeError, TypeError):
                self.seconds = {}  # nothing depends on this record: start over

    def add(self, phase: str, seconds: float) -> None:
        """Add ``seconds`` to a phase, and write the file."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        if self._writes:
            write_atomic(self._path, json.dumps(self.seconds, indent=1))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block, also when an exception ends it; a ``UserError`` means no work was done and adds nothing."""
        start = time.monotonic()
        try:
            yield
        except UserError:
            raise
        except BaseException:
            with contextlib.suppress(OSError):  # the block's exception is the one to show
                self.add(name, time.monotonic() - start)
            raise
        self.add(name, time.monotonic() - start)

    def table(self) -> Table:
        """Seconds and share of each phase, and their total."""
        total = sum(self.seconds.values())
        table = Table("phase", "seconds", "share", title="Where the time went")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:,.0f}", f"{seconds / total:.0%}" if total else "")
        table.add_section()
        table.add_row("total", f"{total:,.0f}", "")
        return table
