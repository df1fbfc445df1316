"""Which rows of every batch a process has to load: those that its devices hold."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """Parts ``first`` to ``last`` (exclusive) of ``parts`` equal ones. With one process it is all of them."""

    first: int = 0
    last: int = 1
    parts: int = 1

    def of_rows(self, rows: int) -> slice:
        """Which of so many rows; their number divides by ``parts``."""
        return slice(rows * self.first // self.parts, rows * self.last // self.parts)


ALL = Share()
