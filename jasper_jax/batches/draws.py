"""Which rows of a store make each batch of a stage: batch k is the items k·B and on in drawing order."""

from __future__ import annotations

import numpy as np

from jasper_jax.data.draw_order import DrawOrder
from jasper_jax.runtime.errors import UserError


class BatchDraws:
    """The rows of a store, drawn at random: a batch has as many rows as items."""

    def __init__(self, rows: str, size: int, held_out: int, *, batch_size: int, seed: int):
        """``rows``: what the items are called; ``size``, ``held_out``: the numbers of training and of held-out items.
        UserError: fewer training items than a batch has."""
        if size < batch_size:
            raise UserError(
                f"stages[].batch_size: {batch_size} exceeds the {size} training {rows}; lower it or add more"
            )
        self.batch_size, self.held_out_items = batch_size, held_out
        self._order = DrawOrder(size, seed)

    @property
    def width(self) -> int:
        """N, the number of rows of a batch."""
        return self.batch_size

    @property
    def key(self) -> str:
        """Everything that the rows depend on besides the store."""
        return repr((self._order.size, self._order.seed, self.batch_size))

    def records(self, first: int, last: int) -> np.ndarray:
        """Rows ``[last - first, N]`` of the training batches ``first .. last - 1``."""
        return self._order.records(first * self.batch_size, last * self.batch_size).reshape(-1, self.batch_size)

    def held_out_records(self, first: int, last: int) -> np.ndarray:
        """Rows ``[last - first, N]`` of batches of held-out items, in store order."""
        return np.arange(first * self.batch_size, last * self.batch_size).reshape(-1, self.batch_size)
