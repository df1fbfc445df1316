"""Rows of vectors that several processes make together: each makes its share, and every process gets them all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jasper_jax.runtime import processes

GATHERED = 2**26
"""Bytes that are exchanged at once: each device holds them for a moment, beside a model's parameters."""


def make_rows(make: Callable[[range], np.ndarray], count: int) -> np.ndarray:
    """``[count, D]``: ``make(rows)`` ``[len(rows), D]`` of all rows, in every process.

    Process i of N makes the rows i, i + N, ... All processes call it at the same point. Fewer rows than processes are
    made by each.

    Raises:
      Interrupted, UserError: in every process, if ``make`` fails in one (``processes.all_do``).
    """
    index, number = processes.index(), processes.count()
    if number == 1:
        return make(range(count))
    if count < number:
        return processes.all_do(lambda: make(range(count)))
    own = processes.all_do(lambda: make(range(index, count, number)))
    most = -(-count // number)
    own = np.concatenate([own, np.zeros_like(own[: most - len(own)])])
    at_once = max(1, GATHERED // (number * own[0].nbytes))
    blocks = [processes.gather(own[start : start + at_once]) for start in range(0, most, at_once)]
    return np.concatenate(blocks, axis=1).swapaxes(0, 1).reshape(most * number, *own.shape[1:])[:count]
