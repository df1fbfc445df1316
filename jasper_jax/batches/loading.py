"""A batch on the host, and what the batches of every kind of stage have in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from jasper_jax.batches.draws import BatchDraws
from jasper_jax.data.row_store import RowStore

S = TypeVar("S", bound=RowStore)


@dataclasses.dataclass(frozen=True)
class ProcessShare:
    """What one process loads: these ``pieces``, ascending, of ``parts`` equal ones; by default the whole batch."""

    pieces: tuple[int, ...] = (0,)
    parts: int = 1

    def of_rows(self, rows: int) -> np.ndarray:
        """The numbers of this process's rows, ascending; ``rows`` is a multiple of ``parts``."""
        each = rows // self.parts
        return (np.array(self.pieces)[:, None] * each + np.arange(each)).ravel()

    def place_of(self, row: int, rows: int) -> int:
        """The place of ``row`` in ``of_rows(rows)``. ValueError: another process loads it."""
        piece, place = divmod(row, rows // self.parts)
        return self.pieces.index(piece) * (rows // self.parts) + place


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

    def __init__(self, store: S, draws: BatchDraws, *, steps: int, share: ProcessShare):
        self.store, self.draws, self.steps = store, draws, steps
        self.held_out_batches = draws.held_out_items // draws.batch_size
        self._share = share

    @abc.abstractmethod
    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Training records for people; each has a ``text``."""

    @abc.abstractmethod
    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        """Batch ``number``, which has these records of ``split``."""

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[N]`` of training batch ``number``."""
        return self.draws.records(number, number + 1)[0]

    def load(self, number: int) -> LoadedBatch:
        """Training batch ``number``."""
        return self._assemble("train", number, self.indices(number))

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out records; all have one shape."""
        return self._assemble("held_out", number, self.draws.held_out_records(number, number + 1)[0])

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
