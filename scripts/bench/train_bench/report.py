"""A report as tables on the console and as Markdown in a file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Section:
    """A title, a table whose first column is text, and lines under it."""

    title: str
    columns: Sequence[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def show(section: Section, console: Console) -> None:
    if section.columns:
        table = Table(title=section.title, title_justify="left")
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
    for line in section.lines:
        console.print(line, markup=False, highlight=False)


def write(
    path: Path | None, title: str, introduction: Sequence[str], sections: Sequence[Section], command: str = ""
) -> None:
    """The sections as Markdown, headed by ``command``, by default the one that runs; nothing without a path."""
    if path is None:
        return
    lines = [f"# {title}", "", f"`python {command or shlex.join(sys.argv)}`", "", *introduction]
    for section in sections:
        lines += ["", f"## {section.title}"]
        if section.columns:
            lines += ["", _row(section.columns), _row(["---"] + ["---:"] * (len(section.columns) - 1))]
            lines += [_row(row) for row in section.rows]
        if section.lines:
            lines += ["", "  \n".join(section.lines)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
