"""Tables of the page: each cell has what is shown and what it is sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None
    """What the cell is sorted by and copied as; None: its text."""
    best: bool = False


@dataclass
class Table:
    """``columns``: titles; a column is numeric if its first cell with a value is."""

    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    caption: str = ""

    def add(self, *cells: Cell | str | float | None) -> None:
        """Add a row; numbers are shown as they are, None as –."""
        self.rows.append([cell if isinstance(cell, Cell) else as_cell(cell) for cell in cells])

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether its cells are numbers."""
        return [any(row[i].value is not None for row in self.rows) for i in range(len(self.columns))]

    @property
    def long(self) -> list[bool]:
        """Of each column, whether it has sentences, which need width."""
        return [any(len(row[i].text) > 60 for row in self.rows) for i in range(len(self.columns))]


def as_cell(value: str | float | None, form: str = "{:,}", suffix: str = "") -> Cell:
    """A number in the given form; None as –."""
    if value is None:
        return Cell("–")
    if isinstance(value, str):
        return Cell(value)
    return Cell(form.format(value) + suffix, float(value))


def scored(value: float | None, half: float | None = None) -> Cell:
    """A score with half the width of its interval."""
    return as_cell(value, "{:.3f}", f" ± {half:.3f}" if half is not None else "")
