"""Progress of long work: a bar with rate and remaining time on a terminal or in a notebook, a line every half minute in
a log file."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jasper_jax.runtime import processes
from jasper_jax.runtime.console import new_console
from jasper_jax.runtime.shown import shown

LOG_SECONDS = 30.0
"""Seconds between lines where the output is not a terminal."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else f"- {unit}/s", style="cyan")


def _has_widgets(console: Console) -> bool:
    """Whether this is a notebook in which Rich can draw a bar (it needs ``ipywidgets``)."""
    return console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None


class Bar:
    """A running count of units of work."""

    def __init__(self, description: str, total: int | None, unit: str, start: int, console: Console, enabled: bool):
        self._description, self._total, self._unit, self._console = shown(description), total, unit, console
        self._done = self._start = start
        self._began = self._printed = time.monotonic()
        self._enabled = enabled
        self._live: Progress | None = None
        if enabled and (console.is_terminal or _has_widgets(console)):
            self._live = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=console,
            )
            self._task = self._live.add_task(self._description, total=total, completed=start, unit=unit, note="")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count ``amount`` more units as done; ``note`` appears at the end of the line."""
        self._done += amount
        if self._live:
            self._live.update(self._task, advance=amount, note=shown(note))
        elif self._enabled and time.monotonic() - self._printed >= LOG_SECONDS:
            self._printed = time.monotonic()
            self._print(note)

    def _print(self, note: str = "") -> None:
        seconds = time.monotonic() - self._began
        rate = (self._done - self._start) / seconds if seconds else 0.0
        amount, eta = f"{self._done:,}", ""
        if self._total is not None:
            amount += f" of {self._total:,}"
            eta = f", {(self._total - self._done) / rate:,.0f} s left" if rate and self._done < self._total else ""
        line = f"{self._description}: {amount} ({rate:,.1f} {self._unit}/s{eta}) {note}".rstrip()
        self._console.print(line)


@contextlib.contextmanager
def bar(description: str, total: int | None, unit: str, *, start: int = 0, enabled: bool = True) -> Iterator[Bar]:
    """Show progress of ``total`` units on standard error, in the first of several processes.

    ``total``: None if unknown. ``start``: units that were done before.
    """
    enabled = enabled and processes.is_first()
    progress = Bar(description, total, unit, start, new_console(sys.stderr), enabled)
    if progress._live:
        with progress._live:
            yield progress
            progress._live.refresh()  # in a notebook Rich draws no last state itself
        return
    yield progress
    if enabled:
        progress._print()


def say(message: str) -> None:
    """Print one line on standard error, in the first of several processes."""
    if not processes.is_first():
        return
    new_console(sys.stderr).print(message)
