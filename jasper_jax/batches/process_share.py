"""The rows of a batch that one process loads: those that its devices hold."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """Parts ``first .. last - 1`` of ``parts`` equal ones; by default the whole batch."""

    first: int = 0
    last: int = 1
    parts: int = 1

    def of_rows(self, rows: int) -> slice:
        """The slice of this process from a number of rows that is a multiple of ``parts``."""
        return slice(rows * self.first // self.parts, rows * self.last // self.parts)


WHOLE_BATCH = ProcessShare()
