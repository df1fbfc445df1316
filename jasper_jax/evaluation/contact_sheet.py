"""Rankings of images to look at: for some captions the pictures ranked first, for some pictures the captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.evaluation.similarity import unit
from jasper_jax.vision.images import open_image

QUERIES, SHOWN, TEXTS = 8, 6, 4
RIGHT = "#1a7f37"


def contact_sheet(
    images: np.ndarray, captions: np.ndarray, pairs: Sequence[Any], path: Path, *, title: str, seed: int = 0
) -> None:
    """Draw ``path``: ``images``, ``captions`` ``[n, E]`` of ``pairs`` that were not trained on, each ranked among all.
    Which are shown is drawn from ``seed``, not chosen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    similarities = unit(captions) @ unit(images).T
    shown = np.random.default_rng(seed).choice(len(pairs), min(2 * QUERIES, len(pairs)), replace=False)
    by_text, by_image = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    figure = plt.figure(figsize=(13, 1.25 * max(len(by_text), 1) + 0.9), dpi=110)
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    left, right = parts
    figure.suptitle(title, fontsize=11)
    left.suptitle("caption → pictures", fontsize=10, y=0.93)
    right.suptitle("picture → captions", fontsize=10, y=0.93)
    grid = left.subplots(len(by_text), SHOWN + 1, squeeze=False, width_ratios=[2.2] + [1] * SHOWN)
    for row, query in zip(grid, by_text):
        _write(row[0], [pairs[query].caption], [False])
        for cell, found in zip(row[1:], np.argsort(-similarities[query], kind="stable")):
            _picture(cell, pairs[found], right=pairs[found].caption == pairs[query].caption)
    grid = right.subplots(len(by_image), 2, squeeze=False, width_ratios=[1, 4])
    for row, query in zip(grid, by_image):
        _picture(row[0], pairs[query], right=False)
        order = np.argsort(-similarities[:, query], kind="stable")[:TEXTS]
        _write(row[1], [pairs[i].caption for i in order], [pairs[i].caption == pairs[query].caption for i in order])
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _picture(cell: Any, pair: Any, *, right: bool) -> None:
    cell.imshow(np.asarray(open_image(pair.image, pair.name)))
    cell.set_xticks([])
    cell.set_yticks([])
    for edge in cell.spines.values():
        edge.set_color(RIGHT if right else "#dddddd")
        edge.set_linewidth(2.5 if right else 0.6)


def _write(cell: Any, lines: Sequence[str], right: Sequence[bool]) -> None:
    cell.set_axis_off()
    for i, (line, good) in enumerate(zip(lines, right)):
        short = line if len(line) <= 44 else line[:43] + "…"
        height = 0.5 if len(lines) == 1 else 0.95 - i * 0.9 / max(len(lines) - 1, 1)
        cell.text(
            0.0,
            height,
            short,
            fontsize=8.5,
            va="center",
            wrap=len(lines) == 1,
            color=RIGHT if good else "black",
            fontweight="bold" if good else "normal",
            transform=cell.transAxes,
        )
