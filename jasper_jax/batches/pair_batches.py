"""Batches of labelled pairs: packed texts as in every batch of texts, and which candidates answer which query."""

from __future__ import annotations

from typing import Any

import numpy as np

from jasper_jax.batches.batches import Batches
from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.batches.pair_draws import PairDraws


class PairBatches(Batches):
    """Adds to the arrays of a batch of texts ``weights [B]`` of the pairs, and ``answers [≥ B, C]`` bool, True where a
    candidate is a known answer of the query; C = B(1+n). Its rows are divided over the devices, those from B on are
    filling."""

    def __init__(self, *arguments: Any, draws: PairDraws, **options: Any):
        super().__init__(*arguments, draws=draws, **options)
        self._pairs = draws

    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        batch = super()._assemble(split, number, indices)
        queries, passages, candidates = self._pairs.split_rows(indices)
        table = self._pairs.pairs.tables[split]
        batch.arrays["answers"] = table.answers(self._own(queries), candidates)
        batch.arrays["weights"] = table.scores_of(queries, passages)
        return batch
