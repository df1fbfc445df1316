"""Tokenised texts, packed into batches: what devices need of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.encoders.batch_shapes import RowBatch, texts_per_row
from jasper_jax.encoders.packing import fill_rows


class PreparedTexts(NamedTuple):
    """Texts ready for the devices."""

    ids: list[np.ndarray]
    images: list[list[tuple[Any, str]]]
    """Of each text, with a name for messages; [] if none has one."""
    skip: np.ndarray | None
    """Tokens of each text's prompt; None if the pooling includes prompts."""
    batches: Sequence[RowBatch]
    pad_id: int = 0
    """Fills the rest of a row."""

    def rows(self, batch: RowBatch) -> dict[str, np.ndarray]:
        """A batch as ``encoders.packed.Packed``, without ``slots``: their number would be one more static shape."""
        shape = (batch.rows, batch.length)
        texts = [self.ids[text] for text in batch.indices]
        tokens, lengths = fill_rows(texts, batch.packing, shape, texts_per_row(batch.length), self.pad_id)
        if self.skip is None:
            return {"ids": tokens, "lengths": lengths}
        prompts = np.zeros_like(lengths)
        prompts[batch.packing.row, batch.packing.place] = self.skip[batch.indices]
        return {"ids": tokens, "lengths": lengths, "prompts": prompts}
