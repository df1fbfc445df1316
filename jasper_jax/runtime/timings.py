"""Where the time of a run went: seconds per phase, added up over all the commands that worked on its folder."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import parse_json, write_atomic


class Timings:
    """Seconds by phase, kept in ``timings.json`` of the run folder."""

    def __init__(self, folder: Path):
        self._path = folder / "timings.json"
        self.seconds: dict[str, float] = {}
        if self._path.is_file():
            try:
                self.seconds = {str(k): float(v) for k, v in parse_json(self._path.read_text()).items()}
            except (ValueError, AttributeError, TypeError):
                self.seconds = {}  # a record of durations, nothing depends on it: begin anew

    def add(self, phase: str, seconds: float) -> None:
        """Add to a phase and write the file."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        write_atomic(self._path, json.dumps(self.seconds, indent=1))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block, also when it is left by an exception (which is then the one to be shown); a refused input
        is no work, and leaves no trace."""
        start = time.monotonic()
        try:
            yield
        except UserError:
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                self.add(name, time.monotonic() - start)
            raise
        self.add(name, time.monotonic() - start)

    def table(self) -> Table:
        """The budget as a table."""
        total = sum(self.seconds.values())
        table = Table("phase", "seconds", "share", title="Where the time went")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, seconds in self.seconds.items():
            table.add_row(name, f"{seconds:,.0f}", f"{seconds / total:.0%}" if total else "")
        table.add_section()
        table.add_row("total", f"{total:,.0f}", "")
        return table
