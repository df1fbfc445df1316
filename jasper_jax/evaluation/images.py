"""Images found by captions and captions by images: Recall@1, 5, 10 and the median rank, on pairs not trained on."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jasper_jax.evaluation.similarity import unit


class Ranks(BaseModel):
    """One direction: shares of queries whose own is among the first, and the median of its rank (1: the first)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recall1: float
    recall5: float
    recall10: float
    median_rank: float
    mean_reciprocal_rank: float


class ImageScore(BaseModel):
    """Both directions over so many pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pairs: Annotated[int, Field(ge=1)]
    text_to_image: Ranks
    image_to_text: Ranks


def score_images(images: np.ndarray, captions: np.ndarray, texts: list[str]) -> ImageScore:
    """``images``, ``captions`` ``[n, E]``, row i of each a pair; ``texts`` the captions, whose repetitions are one."""
    similarities = unit(captions) @ unit(images).T
    _, number = np.unique(np.array(texts), return_inverse=True)
    return ImageScore(
        pairs=len(texts),
        text_to_image=_ranks(similarities, number),
        image_to_text=_ranks(similarities.T, number),
    )


def ranks(similarities: np.ndarray, number: np.ndarray) -> np.ndarray:
    """``[n]``: the rank, from 1, of the first that belongs to each query; ties count against it."""
    same = number[:, None] == number[None, :]
    best = np.where(same, similarities, -np.inf).max(axis=1)
    return 1 + ((similarities >= best[:, None]) & ~same).sum(axis=1)


def _ranks(similarities: np.ndarray, number: np.ndarray) -> Ranks:
    found = ranks(similarities, number)
    return Ranks(
        recall1=float((found <= 1).mean()),
        recall5=float((found <= 5).mean()),
        recall10=float((found <= 10).mean()),
        median_rank=float(np.median(found)),
        mean_reciprocal_rank=float((1 / found).mean()),
    )
