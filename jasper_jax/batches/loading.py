"""A batch on the host, and what the batches of every kind of stage have in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from jasper_jax.data.draw_order import DrawOrder
from jasper_jax.data.row_store import RowStore
from jasper_jax.runtime.errors import UserError

S = TypeVar("S", bound=RowStore)


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """What one process loads: pieces ``first .. last - 1`` of ``parts`` equal ones; by default the whole batch."""

    first: int = 0
    last: int = 1
    parts: int = 1

    def of_rows(self, rows: int) -> slice:
        """The rows of this process; ``rows`` is a multiple of ``parts``."""
        return slice(rows * self.first // self.parts, rows * self.last // self.parts)


WHOLE_BATCH = ProcessShare()


@dataclasses.dataclass(frozen=True)
class LoadedBatch:
    """A batch on the host. ``arrays`` is what the step takes, the rows of this process only; ``indices [B]`` are record
    numbers; ``tokens`` and ``slots`` count those of the whole batch, ``pairs`` the pairs of tokens within a text
    (the sum of the squared lengths; 0 for images)."""

    number: int
    arrays: dict[str, Any]
    indices: np.ndarray
    tokens: int
    slots: int
    pairs: int = 0

    @property
    def padding_share(self) -> float:
        """Share of the encoder's token slots that hold padding."""
        return 1.0 - self.tokens / self.slots


class StageBatches(abc.ABC, Generic[S]):
    """The batches of one stage: batch k is a pure function of (recipe, seed, k)."""

    online: Mapping[str, Any] = {}
    """The teachers that run in the step, by name."""

    def __init__(self, store: S, *, batch_size: int, steps: int, seed: int, share: ProcessShare):
        """``seed`` fixes the draw order. UserError: the store has fewer training records than a batch."""
        size = store.size("train")
        if size < batch_size:
            raise UserError(
                f"stages[].batch_size: {batch_size} exceeds the {size} training {store.ROWS}; lower it or add more"
            )
        self.store, self.batch_size, self.steps = store, batch_size, steps
        self.held_out_batches = store.size("held_out") // batch_size
        self._order, self._share = DrawOrder(size, seed), share

    @abc.abstractmethod
    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Training records for people; each has a ``text``."""

    @abc.abstractmethod
    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        """Batch ``number``, which has these records of ``split``."""

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of training batch ``number``, in drawing order."""
        return self._order.records(number * self.batch_size, (number + 1) * self.batch_size)

    def load(self, number: int) -> LoadedBatch:
        """Training batch ``number``."""
        return self._assemble("train", number, self.indices(number))

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out records, in store order; all have one shape."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size))

    def iterate(self, start: int, workers: int = 0) -> Iterator[LoadedBatch]:
        """Batches ``start .. steps - 1``, loaded ahead in two threads, or in ``workers`` processes if not 0."""
        return prepared_ahead(self.load, start, self.steps, workers)


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
