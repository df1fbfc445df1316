"""Batches of images with their captions' vectors: batch k of a stage is a pure function of (recipe, seed, k).

Images are read, decoded, resized and cropped ahead of the step, in threads or in worker processes. They are passed to
the step as uint8, a quarter of the size of float32; the step normalises them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jasper_jax.batches.captions import CaptionVectors
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.batches.loading import WHOLE_BATCH, LoadedBatch, ProcessShare, StageBatches
from jasper_jax.data.pairs import PairStore
from jasper_jax.encoders.packing import WHOLE, RowDivision
from jasper_jax.vision.images import open_image
from jasper_jax.vision.preprocess import Preprocessing


class ImageBatches(StageBatches[PairStore]):
    """The batches of a stage that learns from images. ``division`` fills up the rows of pixels."""

    def __init__(
        self,
        pairs: PairStore,
        captions: CaptionVectors,
        preprocessing: Preprocessing,
        *,
        draws: BatchDraws,
        steps: int,
        max_pixels: int,
        share: ProcessShare = WHOLE_BATCH,
        division: RowDivision = WHOLE,
    ):
        super().__init__(pairs, draws, steps=steps, share=share)
        self.captions, self.preprocessing, self._max_pixels = captions, preprocessing, max_pixels
        self.rows = division.fill(draws.batch_size)

    def shown(self, indices: np.ndarray) -> list[dict[str, Any]]:
        return [{"image": pair.name, "text": pair.caption} for pair in self.store.read("train", indices)]

    def _assemble(self, split: str, number: int, indices: np.ndarray) -> LoadedBatch:
        rows = self._share.of_rows(self.rows)
        own = indices[rows[rows < len(indices)]]
        S = self.preprocessing.size
        pixels = np.zeros((len(rows), S, S, 3), np.uint8)
        for i, pair in enumerate(self.store.read(split, own)):
            pixels[i] = self.preprocessing.prepare(open_image(pair.image, pair.name, self._max_pixels))
        arrays: dict[str, Any] = {
            "pixels": pixels,
            "captions": self.captions.read(split, indices),
            "same": self.captions.numbers(split, indices),
        }
        return LoadedBatch(number, arrays, indices, tokens=len(indices), slots=self.rows)


def decode_all(
    pairs: PairStore, split: str, preprocessing: Preprocessing, indices: np.ndarray, max_pixels: int
) -> np.ndarray:
    """``[n, S, S, 3]`` uint8 of these records."""
    rows = pairs.read(split, indices)
    with ThreadPoolExecutor(2) as pool:
        images = pool.map(lambda pair: preprocessing.prepare(open_image(pair.image, pair.name, max_pixels)), rows)
        return np.stack(list(images)) if rows else np.zeros((0, preprocessing.size, preprocessing.size, 3), np.uint8)
