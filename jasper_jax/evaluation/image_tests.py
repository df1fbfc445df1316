"""The image-caption pairs that were not trained on: their vectors under the student as it stands, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.data.pairs import PairStore
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.contact_sheet import contact_sheet
from jasper_jax.evaluation.images import ImageScore, score_images
from jasper_jax.student.heads import project_rows

SPLITS = ("test", "held_out")


class ImageTests:
    """Scores of the splits that there are; a head is given by its parameters."""

    def __init__(self, pairs: PairStore, *, progress: bool):
        self.pairs, self.progress = pairs, progress
        self._pooled: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {}
        self._largest: Mapping[str, Any] | None = None

    def encode(self, embedder: Embedder) -> None:
        """Pooled vectors of images and captions with this student."""
        self._pooled = {}
        for split in SPLITS:
            if size := self.pairs.size(split):
                rows = self.pairs.read(split, range(size))
                texts = [row.caption for row in rows]
                images = embedder.pooled([row.image for row in rows], show_progress=self.progress)
                self._pooled[split] = images, embedder.pooled(texts, "passage"), texts

    def score(self, head: Mapping[str, Any]) -> dict[str, ImageScore]:
        """The scores of one head, by split."""
        if self._largest is None or head["kernel"].shape[1] >= self._largest["kernel"].shape[1]:
            self._largest = head
        return {
            split: score_images(project_rows(head, images), project_rows(head, captions), texts)
            for split, (images, captions, texts) in self._pooled.items()
        }

    def draw(self, path: Path) -> None:
        """The contact sheet, by the last student that was encoded and scored, at its largest dimension."""
        split = next((s for s in SPLITS if s in self._pooled), None)
        if split is None or self._largest is None:
            return
        images, captions, _ = self._pooled[split]
        rows = self.pairs.read(split, range(self.pairs.size(split)))
        dim = self._largest["kernel"].shape[1]
        title = f"{len(rows)} pictures that were not trained on, {dim} dimensions; green: the right one"
        contact_sheet(
            project_rows(self._largest, images), project_rows(self._largest, captions), rows, path, title=title
        )
