"""Agreement of a student with its teacher on texts that neither was trained on.

Does the student order texts as the teacher does, over all pairs and among each text's nearest neighbours? Letters:
``n`` texts, ``E`` and ``T`` the two dimensions, ``P`` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.evaluation.retrieval import rank
from jasper_jax.evaluation.similarity import spearman, unit

MOST_PAIRS = 200_000
"""Pairs that are compared; if there are more, a sample of this size is drawn."""
_PAIRS = 8192  # pairs whose vectors are gathered at a time


@dataclass(frozen=True)
class AgreementScore:
    spearman: float | None
    """Rank correlation of the pairs' similarities; None if one side is the same for every pair."""
    overlap: float | None
    """Mean share of a text's nearest neighbours that student and teacher have in common; by chance
    ``neighbours / (texts - 1)``. None if that is 1."""
    neighbours: int
    texts: int
    pairs: int


def score_agreement(student: ArrayLike, teacher: ArrayLike, neighbours: int = 10, seed: int = 0) -> AgreementScore:
    """Compare a student's vectors ``[n, E]`` with its teacher's ``[n, T]`` of the same texts.

    ``seed`` draws the pairs if there are more than ``MOST_PAIRS``. Neighbours are exact; ties go by position.
    """
    student, teacher = unit(student), unit(teacher)
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student vectors and {len(teacher)} teacher vectors")
    if neighbours < 1:
        raise ValueError(f"expected neighbours of at least 1, got {neighbours}")
    i, j = text_pairs(len(student), MOST_PAIRS, seed)
    overlap = None
    if len(student) > neighbours + 1:
        nearest, expected = (rank(v, v, neighbours, skip_self=True) for v in (student, teacher))
        overlap = float((nearest[:, :, None] == expected[:, None, :]).sum() / nearest.size)
    return AgreementScore(
        spearman=spearman(pair_similarities(student, i, j), pair_similarities(teacher, i, j)),
        overlap=overlap,
        neighbours=neighbours,
        texts=len(student),
        pairs=len(i),
    )


def text_pairs(count: int, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All pairs ``i < j`` of ``count`` texts, or ``most`` random distinct ones: two arrays ``[P]``."""
    total = count * (count - 1) // 2
    if total <= most:
        return np.triu_indices(count, k=1)
    # Pair number k is (i, j) with j(j-1)/2 + i = k; the root is exact enough for tens of millions of texts.
    number = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    return number - j * (j - 1) // 2, j


def pair_similarities(vectors: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Dot products ``[P]`` of the rows ``i`` and ``j`` of ``[n, E]``."""
    blocks = [
        np.einsum("pe,pe->p", vectors[i[k : k + _PAIRS]], vectors[j[k : k + _PAIRS]]) for k in range(0, len(i), _PAIRS)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)
