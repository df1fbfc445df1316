"""Stages on labelled pairs: the student learns to rank the passage that answers a query, beside the teachers' vectors.

The distillation terms take every text of the batch; those on pairs (``contrastive``, ``ranking``, ``margin_mse``,
``spread``) the queries and their candidates.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.batches.pair_batches import PairBatches
from jasper_jax.batches.pair_draws import DrawnPairs, PairDraws
from jasper_jax.data.shards import SPLITS
from jasper_jax.recipe.stages import plain_texts
from jasper_jax.training.stage_kind import Inputs, Params
from jasper_jax.training.teaching import Teaching
from jasper_jax.training.text_stage import TextStage


class PairStage(TextStage):
    """Its batches (``batches.pair_batches``) are those of a text stage, with the pairs' ``answers`` and ``weights``."""

    replicated = (*TextStage.replicated, "weights")

    def batches(self, inputs: Inputs, params: Params) -> PairBatches:
        texts, negatives = inputs.texts, inputs.negatives
        assert texts is not None
        assert self.recipe.texts is not None
        tables = texts.pairs
        given = {split: tables[split].negatives for split in SPLITS}
        pools = {
            split: np.concatenate([given[split], *([negatives.pairs[split].rows] if negatives else [])], axis=1)
            for split in SPLITS
        }
        draws = PairDraws(
            DrawnPairs(tables, pools, {split: texts.size(split) for split in SPLITS}),
            [source.weight for source in self.recipe.texts.pairs],
            batch_size=self.stage.batch_size,
            negatives=self.stage.settings.negatives,
            plain=plain_texts(self.stage.settings),
            seed=self.seed,
            key=f"{texts.pair_fingerprint} {negatives.fingerprint if negatives else None}",
        )
        return self.packed(PairBatches, inputs, draws)

    def abstract_batch(self, rows: int, shards: int, teaching: Teaching) -> tuple[dict[str, Any], int]:
        batch, length = super().abstract_batch(rows, shards, teaching)
        pairs, each = self.stage.batch_size, 1 + self.stage.settings.negatives
        batch["answers"] = jax.ShapeDtypeStruct((-(-pairs // shards) * shards, pairs * each), jnp.bool)
        batch["weights"] = jax.ShapeDtypeStruct((pairs,), jnp.float32)
        return batch, length
