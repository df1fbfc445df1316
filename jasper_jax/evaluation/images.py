"""Retrieval of images by captions and of captions by images: Recall@1, 5, 10 and ranks, on pairs not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from jasper_jax.evaluation.similarity import unit


@dataclass(frozen=True)
class Ranks:
    """One direction: recall, the median of the correct answers' ranks (from 1), and their mean reciprocal."""

    recall1: float
    recall5: float
    recall10: float
    median_rank: float
    mean_reciprocal_rank: float


@dataclass(frozen=True)
class ImageScore:
    """Both directions, over ``pairs`` pairs."""

    pairs: Annotated[int, Field(ge=1)]
    text_to_image: Ranks
    image_to_text: Ranks


def score_images(images: np.ndarray, captions: np.ndarray, texts: list[str]) -> ImageScore:
    """Scores of the vectors ``images``, ``captions`` ``[n, E]`` of n pairs. ``texts``: the captions; images of equal
    captions answer each other's queries."""
    similarities = unit(captions) @ unit(images).T
    _, number = np.unique(np.array(texts), return_inverse=True)
    return ImageScore(
        pairs=len(texts),
        text_to_image=_ranks(similarities, number),
        image_to_text=_ranks(similarities.T, number),
    )


def ranks(similarities: np.ndarray, number: np.ndarray) -> np.ndarray:
    """``[n]``: the rank, from 1, of the best correct answer to each query; ties count against it. ``number [n]``:
    equal for rows that answer each other."""
    same = number[:, None] == number[None, :]
    best = np.where(same, similarities, -np.inf).max(axis=1)
    return 1 + ((similarities >= best[:, None]) & ~same).sum(axis=1)


def _ranks(similarities: np.ndarray, number: np.ndarray) -> Ranks:
    best = ranks(similarities, number)
    return Ranks(
        recall1=float((best <= 1).mean()),
        recall5=float((best <= 5).mean()),
        recall10=float((best <= 10).mean()),
        median_rank=float(np.median(best)),
        mean_reciprocal_rank=float((1 / best).mean()),
    )
