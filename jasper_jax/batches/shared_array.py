"""A cached array that all processes compute together, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.runtime import processes
from jasper_jax.runtime.files import read_cached_array, write_cached_array


def shared_array(path: Path, shape: tuple[int, ...], compute: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """The int32 array of this ``shape`` in the cache file ``path``, computed and written if missing.

    ``compute(first, last)`` returns the rows ``first .. last - 1``. Each process computes an equal share of the rows
    and receives the complete array. All processes must call this together.
    """
    cached = read_cached_array(path)
    valid = cached is not None and cached.shape == shape
    if processes.gather(np.array([valid])).all():
        assert cached is not None
        return cached
    rows_each = -(-shape[0] // processes.count())
    first = min(processes.index() * rows_each, shape[0])
    last = min(first + rows_each, shape[0])
    own = np.zeros((rows_each, *shape[1:]), np.int32)  # the last process may have fewer rows: all gather equal shapes
    if first < last:
        own[: last - first] = compute(first, last)
    array = processes.gather(own).reshape(-1, *shape[1:])[: shape[0]]
    write_cached_array(path, array)
    return array
