"""Batches of images with their captions' vectors: batch k of a stage is a pure function of (recipe, seed, k).

Images are read, decoded, resized and cropped ahead of the step, in threads or in worker processes. They are passed to
the step as uint8, a quarter of the size of float32; the step normalises them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jasper_jax.batches.captions import CaptionVectors
from jasper_jax.batches.draw_order import DrawOrder
from jasper_jax.batches.loading import LoadedBatch, prepared_ahead
from jasper_jax.batches.process_share import WHOLE_BATCH, ProcessShare
from jasper_jax.data.pairs import PairStore
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.images import open_image
from jasper_jax.vision.preprocess import Preprocessing


class ImageBatches:
    """The batches of one stage. The rows of pixels are padded to a multiple of ``multiple``."""

    online: Mapping[str, Any] = {}
    """No teacher runs in the step."""

    def __init__(
        self,
        pairs: PairStore,
        captions: CaptionVectors,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        max_pixels: int,
        share: ProcessShare = WHOLE_BATCH,
        multiple: int = 1,
    ):
        size = pairs.size("train")
        if size < batch_size:
            raise UserError(
                f"stages[].batch_size: {batch_size} exceeds the {size} training pairs; lower it or add pairs"
            )
        self.pairs, self.captions, self.preprocessing = pairs, captions, preprocessing
        self.batch_size, self.steps = batch_size, steps
        self.held_out_batches = pairs.size("held_out") // batch_size
        self.rows = -(-batch_size // multiple) * multiple
        self._share, self._max_pixels = share, max_pixels
        self._order = DrawOrder(size, seed)

    def indices(self, number: int) -> np.ndarray:
        """Record numbers ``[B]`` of batch ``number`` in the training split."""
        return self._order.records(number * self.batch_size, (number + 1) * self.batch_size)

    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Training pairs, to show to people."""
        return [{"image": row.name, "text": row.caption} for row in self.pairs.read("train", indices)]

    def load(self, number: int) -> LoadedBatch:
        """Batch ``number``, decoded."""
        return self._assemble("train", number, self.indices(number))

    def held_out(self, number: int) -> LoadedBatch:
        """Batch ``number`` of the held-out pairs, in store order."""
        start = number * self.batch_size
        return self._assemble("held_out", number, np.arange(start, start + self.batch_size))

    def iterate(self, start: int, workers: int = 0) -> Iterator[LoadedBatch]:
        """Batches ``start .. steps - 1``, loaded ahead in two threads, or in ``workers`` processes if not 0."""
        return prepared_ahead(self.load, start, self.steps, workers)

    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        rows = self._share.of_rows(self.rows)
        own = indices[rows.start : rows.stop]
        S = self.preprocessing.size
        pixels = np.zeros((rows.stop - rows.start, S, S, 3), np.uint8)
        for i, pair in enumerate(self.pairs.read(split, own)):
            pixels[i] = self.preprocessing.prepare(open_image(pair.image, pair.name, self._max_pixels))
        arrays: dict[str, Any] = {
            "pixels": pixels,
            "captions": self.captions.read(split, indices),
            "same": self.captions.numbers(split, indices),
        }
        return LoadedBatch(number, arrays, indices, tokens=self.batch_size, slots=self.rows)


def decode_all(
    pairs: PairStore, split: str, preprocessing: Preprocessing, indices: np.ndarray, max_pixels: int
) -> np.ndarray:
    """``[n, S, S, 3]`` uint8 of these records."""
    rows = pairs.read(split, indices)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda pair: preprocessing.prepare(open_image(pair.image, pair.name, max_pixels)), rows)
        return np.stack(list(found)) if rows else np.zeros((0, preprocessing.size, preprocessing.size, 3), np.uint8)
