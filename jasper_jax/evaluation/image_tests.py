"""The image-caption pairs not trained on: a student's vectors of them, its scores, and a figure of its rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.data.pairs import PairStore
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.figures import default_style, new_figure, save_figure
from jasper_jax.evaluation.images import ImageScore, score_images
from jasper_jax.evaluation.similarity import unit
from jasper_jax.evaluation.text_tests import Texts, encode_list
from jasper_jax.runtime.shared_rows import make_rows
from jasper_jax.runtime.shown import visible
from jasper_jax.student.heads import project_rows
from jasper_jax.vision.images import open_image

SPLITS = ("test", "held_out")
QUERIES, SHOWN, TEXTS = 8, 6, 4
CORRECT = "#1a7f37"


class ImageVectors(NamedTuple):
    """A student's pooled vectors ``[n, D]`` of the pairs of a split, and their captions."""

    images: np.ndarray
    captions: np.ndarray
    texts: list[str]


class ImageTests:
    """Scores a student's heads on each split of the pairs that is not empty."""

    def __init__(self, pairs: PairStore, *, progress: bool):
        self.pairs, self.progress = pairs, progress
        self._scored: Mapping[str, ImageVectors] = {}
        self._largest: Mapping[str, Any] | None = None

    def encode(self, embedder: Embedder) -> dict[str, ImageVectors]:
        """A student's vectors by split; all processes make them together."""
        return {split: self._vectors(split, embedder) for split in SPLITS if self.pairs.size(split)}

    def _vectors(self, split: str, embedder: Embedder) -> ImageVectors:
        size = self.pairs.size(split)
        texts = [row.caption for row in self.pairs.read(split, range(size))]

        def images(rows: range) -> np.ndarray:
            own = [row.image for row in self.pairs.read(split, rows)]
            return embedder.pooled(own, show_progress=self.progress)

        captions = encode_list(embedder.pooled, Texts(texts, ["passage"] * size))
        return ImageVectors(make_rows(images, size), captions, texts)

    def score(self, head: Mapping[str, Any], vectors: Mapping[str, ImageVectors]) -> dict[str, ImageScore]:
        """The scores of a student's head with parameters ``head``, by split. ``vectors``: of this student."""
        self._scored = vectors
        if self._largest is None or head["kernel"].shape[1] >= self._largest["kernel"].shape[1]:
            self._largest = head
        return {
            split: score_images(project_rows(head, pairs.images), project_rows(head, pairs.captions), pairs.texts)
            for split, pairs in vectors.items()
        }

    def draw(self, path: Path) -> None:
        """Draw the contact sheet of the last student scored, at its largest dimension."""
        split = next((s for s in SPLITS if s in self._scored), None)
        if split is None or self._largest is None:
            return
        images, captions, _ = self._scored[split]
        rows = self.pairs.read(split, range(self.pairs.size(split)))
        dim = self._largest["kernel"].shape[1]
        title = f"{len(rows)} images not trained on, {dim} dimensions; green: the correct one"
        images, captions = (project_rows(self._largest, pooled) for pooled in (images, captions))
        contact_sheet(images, captions, rows, path, title=title)


@default_style()
def contact_sheet(
    images: np.ndarray, captions: np.ndarray, pairs: Sequence[Any], path: Path, *, title: str, seed: int = 0
) -> None:
    """Draw ``path`` from the vectors ``images``, ``captions`` ``[n, E]`` of ``pairs``. The queries shown are a random
    sample, by ``seed``; each is ranked among all n of the other side."""
    similarities = unit(captions) @ unit(images).T
    shown = np.random.default_rng(seed).choice(len(pairs), min(2 * QUERIES, len(pairs)), replace=False)
    by_text, by_image = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    figure = new_figure(13, 1.25 * max(len(by_text), 1) + 0.9)
    panels: Any = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    left, right = panels
    figure.suptitle(title, fontsize=11)
    left.suptitle("caption → pictures", fontsize=10, y=0.93)
    right.suptitle("picture → captions", fontsize=10, y=0.93)
    grid = left.subplots(len(by_text), SHOWN + 1, squeeze=False, width_ratios=[2.2] + [1] * SHOWN)
    for row, query in zip(grid, by_text):
        _write(row[0], [pairs[query].caption], [False])
        for cell, i in zip(row[1:], np.argsort(-similarities[query], kind="stable")):
            _picture(cell, pairs[i], correct=pairs[i].caption == pairs[query].caption)
    grid = right.subplots(len(by_image), 2, squeeze=False, width_ratios=[1, 4])
    for row, query in zip(grid, by_image):
        _picture(row[0], pairs[query], correct=False)
        order = np.argsort(-similarities[:, query], kind="stable")[:TEXTS]
        _write(row[1], [pairs[i].caption for i in order], [pairs[i].caption == pairs[query].caption for i in order])
    save_figure(figure, path, dpi=110)


def _picture(cell: Any, pair: Any, *, correct: bool) -> None:
    cell.imshow(np.asarray(open_image(pair.image, pair.name)))
    cell.set_xticks([])
    cell.set_yticks([])
    for edge in cell.spines.values():
        edge.set_color(CORRECT if correct else "#dddddd")
        edge.set_linewidth(2.5 if correct else 0.6)


def _write(cell: Any, lines: Sequence[str], correct: Sequence[bool]) -> None:
    cell.set_axis_off()
    for i, (line, is_correct) in enumerate(zip(lines, correct)):
        line = visible(line)
        short = (line if len(line) <= 44 else line[:43] + "…").replace("$", r"\$")  # no formula
        height = 0.5 if len(lines) == 1 else 0.95 - i * 0.9 / max(len(lines) - 1, 1)
        style = {"color": CORRECT, "fontweight": "bold"} if is_correct else {"color": "black"}
        place = {"va": "center", "wrap": len(lines) == 1, "transform": cell.transAxes}
        cell.text(0.0, height, short, fontsize=8.5, **place, **style)
