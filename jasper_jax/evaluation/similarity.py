"""Cosine similarity of vectors, and how well it orders pairs of texts compared with human judgements.

Letters: ``n`` texts, ``E`` the vectors' dimension, ``M`` a nested dimension, ``P`` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.vectors import normalize_rows

_ROWS = 4096  # vectors normalised at a time: bounds the temporaries


@dataclass(frozen=True)
class SimilarityScore:
    """Agreement with human judgements of similarity."""

    spearman: float | None
    """Rank correlation over all pairs; None if one side is the same for every pair."""
    pairs: int


def score_similarity(vectors: ArrayLike, human: ArrayLike) -> SimilarityScore:
    """Spearman correlation of the vectors' cosine similarities with human judgements.

    Args:
      vectors: ``[n, E]``, not necessarily normalised.
      human: ``[n, n]``; only the entries above the diagonal are read.
    """
    rows, human = unit(vectors), np.asarray(human, dtype=np.float64)
    if human.shape != (len(rows), len(rows)):
        raise ValueError(f"{len(rows)} vectors need judgements of shape {(len(rows),) * 2}, not {human.shape}")
    upper = np.triu_indices(len(rows), k=1)
    return SimilarityScore(spearman((rows @ rows.T)[upper], human[upper]), pairs=len(upper[0]))


def score_judged_pairs(vectors: ArrayLike, judged: Sequence[tuple[int, int, float]]) -> SimilarityScore:
    """Spearman correlation of the cosine similarities of pairs of ``vectors [n, E]`` with their judgements.

    ``judged``: the positions of a pair's two texts, and its judgement, on any scale.
    """
    rows = unit(vectors)
    one, other = (np.array([pair[side] for pair in judged], np.int64) for side in (0, 1))
    similarity = np.einsum("pe,pe->p", rows[one], rows[other])
    return SimilarityScore(spearman(similarity, np.array([pair[2] for pair in judged])), pairs=len(judged))


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation of ``[P]`` with ``[P]``; ties get their mean rank. None for fewer than two pairs or a
    constant side."""
    from scipy.stats import spearmanr

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result: Any = spearmanr(x, y)
    return float(result.statistic)


def unit(vectors: ArrayLike) -> np.ndarray:
    """Rows of ``[n, E]`` as float32 of length 1 (``normalize_rows``), for scoring.

    Equal rows stay equal to the bit, so that ties in similarity survive. UserError for a row that is not finite, as
    from a diverged training.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"expected vectors of shape [n, E] with E > 0, got {list(vectors.shape)}")
    out = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS].astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise UserError(
                f"vector {start + bad[0]} of {len(vectors)} is not finite, so it cannot be scored; "
                "the model that made it has diverged or its weights are damaged"
            )
        out[start : start + _ROWS] = normalize_rows(rows)
    return out


def truncate(vectors: ArrayLike, dim: int) -> np.ndarray:
    """The nested vectors ``[n, M]``: the first ``dim`` components of ``[n, E]``, normalised again."""
    vectors = np.asarray(vectors)
    if not 1 <= dim <= vectors.shape[-1]:
        raise ValueError(f"cannot take the first {dim} components of vectors with {vectors.shape[-1]}")
    return unit(vectors[:, :dim])
