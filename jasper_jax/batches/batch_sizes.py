"""The sizes of every batch of a stage, from which the few static shapes of its programs are chosen before it starts.

They follow from the token counts and the draw order alone. No text is read, and no text is given its place: that is
done when a batch is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jasper_jax.batches.draw_order import DrawOrder
from jasper_jax.batches.shared_array import shared_array
from jasper_jax.batches.token_counts import TokenCounts
from jasper_jax.encoders.packed_sizes import packed_sizes
from jasper_jax.encoders.packing import row_length
from jasper_jax.runtime.errors import UserError

_PIECE = 1 << 20
"""Texts whose lengths are held in memory at once."""


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The sizes of the K batches of a stage, training ones first, packed into rows of ``row_length`` tokens: how many
    rows each needs, ``rows [K]``, and how many texts its fullest row holds, ``texts [K]``."""

    row_length: int
    rows: np.ndarray
    texts: np.ndarray


@dataclasses.dataclass(frozen=True)
class BatchLengths:
    """Token counts of the texts of each batch: ``steps`` training batches in drawing order, then ``held_out`` batches
    in store order."""

    counts: TokenCounts
    order: DrawOrder
    batch_size: int
    steps: int
    held_out: int

    @property
    def key(self) -> str:
        """Names everything the lengths depend on."""
        parts = (self.counts.key, self.order.size, self.order.seed, self.batch_size, self.steps, self.held_out)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def pieces(self, first: int, last: int) -> Iterator[np.ndarray]:
        """``[k, B]`` of the batches ``first .. last - 1``, some at a time."""
        step = max(1, _PIECE // self.batch_size)
        for start in range(first, min(last, self.steps), step):
            stop = min(start + step, last, self.steps)
            records = self.order.records(start * self.batch_size, stop * self.batch_size)
            yield self.counts.by_split["train"][records].reshape(-1, self.batch_size)
        start, stop = (max(0, number - self.steps) * self.batch_size for number in (first, last))
        if start < stop:
            yield self.counts.by_split["held_out"][start:stop].reshape(-1, self.batch_size)


def batch_sizes(lengths: BatchLengths, folder: Path, *, row: int | None = None, tile: int = 1) -> BatchSizes:
    """Sizes of the batches of these ``lengths``, cached in ``folder``; computed by all processes together.

    ``row`` is the tokens of a row; None: chosen from the texts, a multiple of ``tile``.

    Raises:
      UserError: a text does not fit ``row``.
    """
    batches = lengths.steps + lengths.held_out

    def tokens(first: int, last: int) -> np.ndarray:
        found = [np.stack([piece.sum(axis=1), piece.max(axis=1)], axis=1) for piece in lengths.pieces(first, last)]
        return np.concatenate(found)

    total, longest = shared_array(folder / f"batch-tokens-{lengths.key}.npy", (batches, 2), tokens).T
    most = int(longest.max())
    if row is not None and row < most:
        raise UserError(
            f"training.row_length: {row}, but a text of {most} tokens has to fit; give at least that or lower"
            f" training.max_length"
        )
    chosen = row or -(-row_length(most, float(np.mean(total))) // tile) * tile

    def packed(first: int, last: int) -> np.ndarray:
        found = [np.stack(packed_sizes(piece, chosen), axis=1) for piece in lengths.pieces(first, last)]
        return np.concatenate(found)

    rows, texts = shared_array(folder / f"batch-rows-{lengths.key}-{chosen}.npy", (batches, 2), packed).T
    return BatchSizes(chosen, rows, texts)
