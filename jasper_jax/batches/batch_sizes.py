"""Token counts of every text and the sizes of every batch of a stage, from which its few static shapes are chosen.

Batch sizes follow from the token counts and the draw order alone: once the counts are cached, no text is read before
the first step. A text is assigned to a row when its batch is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jasper_jax.batches.draws import BatchDraws
from jasper_jax.batches.shared_array import shared_array
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.packed_sizes import packed_sizes
from jasper_jax.encoders.packing import row_length
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError

_PIECE = 1 << 20
"""Texts whose lengths are held in memory at once."""


class TokenCounts:
    """Token counts of every text under a tokenizer and its prompts, cached in ``folder``: ``by_split[split] [n]``.

    ``key`` is a hash of everything they depend on.
    """

    def __init__(self, texts: TextStore, tokenizer: Tokenizer, prompts: Mapping[str, str], folder: Path):
        settings = (texts.fingerprint, tokenizer.fingerprint(), tokenizer.max_length, sorted(prompts.items()))
        self.key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

        def count(split: str, first: int, last: int) -> np.ndarray:
            counts = np.zeros(last - first, np.int32)
            for start in range(first, last, 4096):
                rows = texts.read(split, range(start, min(last, start + 4096)))
                counts[start - first :][: len(rows)] = tokenizer.lengths([prompts[r.kind] + r.text for r in rows])
            return counts

        self.by_split: dict[str, np.ndarray] = {
            split: shared_array(folder / f"{split}-{self.key}.npy", (texts.size(split),), partial(count, split))
            for split in ("train", "held_out")
        }


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The sizes of the K batches of a stage, training batches first, packed into rows of ``row_length`` tokens:
    ``rows [K]`` of each, and ``texts [K]`` in its fullest row."""

    row_length: int
    rows: np.ndarray
    texts: np.ndarray


@dataclasses.dataclass(frozen=True)
class BatchLengths:
    """Token counts of the texts of each batch: ``steps`` training batches, then ``held_out`` batches of held-out
    texts."""

    counts: TokenCounts
    draws: BatchDraws
    steps: int
    held_out: int

    @property
    def key(self) -> str:
        """A hash of everything the lengths depend on."""
        inputs = (self.counts.key, self.draws.key, self.steps, self.held_out)
        return hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]

    def pieces(self, first: int, last: int) -> Iterator[np.ndarray]:
        """``[k, N]`` of the batches ``first .. last - 1``, in pieces."""
        step = max(1, _PIECE // self.draws.width)
        for start in range(first, min(last, self.steps), step):
            stop = min(start + step, last, self.steps)
            yield self.counts.by_split["train"][self.draws.records(start, stop)]
        start, stop = (max(0, number - self.steps) for number in (first, last))
        if start < stop:
            yield self.counts.by_split["held_out"][self.draws.held_out_records(start, stop)]


def batch_sizes(lengths: BatchLengths, folder: Path, *, row: int | None = None, tile: int = 1) -> BatchSizes:
    """Sizes of the batches of these ``lengths``, cached in ``folder``; all processes compute them together.

    ``row``: tokens in a row; None: chosen from the texts, a multiple of ``tile``. UserError: a text is longer.
    """
    batches = lengths.steps + lengths.held_out

    def tokens(first: int, last: int) -> np.ndarray:
        pieces = lengths.pieces(first, last)
        return np.concatenate([np.stack([piece.sum(axis=1), piece.max(axis=1)], axis=1) for piece in pieces])

    total, longest = shared_array(folder / f"batch-tokens-{lengths.key}.npy", (batches, 2), tokens).T
    most = int(longest.max())
    if row is not None and row < most:
        raise UserError(
            f"training.row_length: {row} is less than the {most} tokens of the longest text; set at least {most} or"
            f" lower training.max_length"
        )
    chosen = row or -(-row_length(most, float(np.mean(total))) // tile) * tile

    def packed(first: int, last: int) -> np.ndarray:
        pieces = lengths.pieces(first, last)
        return np.concatenate([np.stack(packed_sizes(piece, chosen), axis=1) for piece in pieces])

    rows, texts = shared_array(folder / f"batch-rows-{lengths.key}-{chosen}.npy", (batches, 2), packed).T
    return BatchSizes(chosen, rows, texts)
