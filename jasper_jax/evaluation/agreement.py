"""Agreement of a student with its teacher on texts that neither was trained on.

Two views of the same question, does the student order texts as the teacher does: over all pairs, and among
the nearest neighbours of each text. Letters: ``n`` texts, ``E`` and ``T`` the two dimensions, ``P`` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.evaluation.retrieval import rank
from jasper_jax.evaluation.similarity import spearman, unit

MOST_PAIRS = 200_000
"""Pairs that are compared; of more texts than make so many, a sample of this size is drawn."""
_PAIRS = 8192  # pairs whose vectors are gathered at a time


@dataclass(frozen=True)
class AgreementScore:
    spearman: float | None
    """Rank correlation of the pairs' similarities; None where one side is the same for every pair."""
    overlap: float | None
    """Mean share of a text's nearest neighbours that student and teacher have in common; chance is
    ``neighbours / (texts - 1)``. None where that is 1."""
    neighbours: int
    texts: int
    pairs: int


def score_agreement(student: ArrayLike, teacher: ArrayLike, neighbours: int = 10, seed: int = 0) -> AgreementScore:
    """Compare a student's vectors ``[n, E]`` with its teacher's ``[n, T]``, row by row the same texts.

    ``seed`` draws the pairs where there are more than ``MOST_PAIRS``. Neighbours are exact, ties by position.
    """
    student, teacher = unit(student), unit(teacher)
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student vectors and {len(teacher)} teacher vectors")
    if neighbours < 1:
        raise ValueError(f"neighbours is at least 1, not {neighbours}")
    i, j = text_pairs(len(student), MOST_PAIRS, seed)
    overlap = None
    if len(student) > neighbours + 1:
        ours, theirs = (rank(v, v, neighbours, skip_self=True) for v in (student, teacher))
        overlap = float((ours[:, :, None] == theirs[:, None, :]).sum() / ours.size)
    return AgreementScore(
        spearman=spearman(pair_similarities(student, i, j), pair_similarities(teacher, i, j)),
        overlap=overlap,
        neighbours=neighbours,
        texts=len(student),
        pairs=len(i),
    )


def text_pairs(count: int, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All pairs ``i < j`` of ``count`` texts, or ``most`` different ones at random: two arrays ``[P]``."""
    total = count * (count - 1) // 2
    if total <= most:
        return np.triu_indices(count, k=1)
    # Pair number k is (i, j) with j(j-1)/2 + i = k; the root is exact enough for tens of millions of texts.
    number = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    return number - j * (j - 1) // 2, j


def pair_similarities(vectors: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Dot products ``[P]`` of the rows ``i`` and ``j`` of ``[n, E]``."""
    parts = [
        np.einsum("pe,pe->p", vectors[i[k : k + _PAIRS]], vectors[j[k : k + _PAIRS]]) for k in range(0, len(i), _PAIRS)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
