"""Tables on a terminal: as a table where it fits, else as lists, so that no name is cut."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jasper_jax.runtime.console import bold, new_console

OUT = new_console()
"""Where commands print their results."""


def print_table(table: Table, console: Console) -> None:
    """Print ``table``, or where the terminal is too narrow for it each row as a list of ``header: value``.

    A file or a pipe has no width and gets the table.
    """
    options = dataclasses.replace(console.options, max_width=10_000)
    width = Measurement.get(console, options, table).maximum
    if width <= console.width:
        console.print(table)
    elif not console.is_terminal:
        before, console.width = console.width, width
        try:
            console.print(table)
        finally:
            console.width = before
    else:
        _print_list(table, console)


def _print_list(table: Table, console: Console) -> None:
    def plain(cell: object) -> str:
        text = cell.plain if isinstance(cell, Text) else str(cell)
        return text.replace("\n", "; ")

    headers = [plain(column.header) for column in table.columns]
    if table.title:
        console.print(bold(plain(table.title)))
    previous = ""
    for cells in zip(*(column.cells for column in table.columns)):
        first, *rest = map(plain, cells)
        previous = first or previous  # a name that is written once for several rows
        console.print(bold(previous))
        for header, value in zip(headers[1:], rest):
            if value:
                console.print(f"  {header}: {value}")
    if table.caption:
        console.print(table.caption)
