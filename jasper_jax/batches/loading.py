"""A batch on the host, and batches prepared ahead of the step that takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host. ``arrays`` is what the step takes, the rows of this process only; ``indices [B]`` are record
    numbers; ``tokens`` and ``slots`` count those of the whole batch."""

    number: int
    arrays: dict[str, Any]
    indices: np.ndarray
    tokens: int
    slots: int

    @property
    def padding_share(self) -> float:
        """Share of the encoder's token slots that hold padding."""
        return 1.0 - self.tokens / self.slots


def prepared_ahead(
    load: Callable[[int], LoadedBatch], start: int, steps: int, workers: int = 0
) -> Iterator[LoadedBatch]:
    """``load(start) .. load(steps - 1)``, computed ahead in two threads, or in ``workers`` processes if not 0."""
    numbers = grain.MapDataset.range(start, steps)
    loaded = numbers.map(load).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=6))
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(loaded)
