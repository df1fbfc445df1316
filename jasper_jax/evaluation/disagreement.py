"""Where a student's similarities of held-out texts differ from a teacher's: over all pairs, and text by text.

Letters: ``n`` texts, ``E`` dimension, ``V`` providers of vectors, ``C`` components.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jasper_jax.evaluation.agreement import MOST_PAIRS, pair_similarities, text_pairs
from jasper_jax.evaluation.by_text import Density, MapText, Provider, cut, pairs_of
from jasper_jax.evaluation.similarity import unit
from jasper_jax.evaluation.text_tests import Texts

BINS = 48
MAP_TEXTS = 600
"""The most texts of the map."""
NEAREST = 5
COMPONENTS = 24


def densities(providers: Sequence[Provider], vectors: Sequence[ArrayLike], seed: int = 0) -> list[Density]:
    """The density of every student with every teacher, from ``vectors`` ``[n, E]`` of the same texts.

    Pairs of texts are all, or ``MOST_PAIRS`` drawn by ``seed``. The range leaves out the 0.1% of pairs with the lowest
    similarities, which count in the first bin.
    """
    units = [unit(x) for x in vectors]
    i, j = text_pairs(len(units[0]), MOST_PAIRS, seed)
    if not len(i):
        return []
    similarities = [pair_similarities(x, i, j) for x in units]
    found = []
    for student, teacher in pairs_of(providers):
        both = similarities[student], similarities[teacher]
        low = float(np.floor(20 * min(np.quantile(x, 0.001) for x in both)) / 20)
        high = float(np.ceil(20 * max(x.max() for x in both)) / 20)
        edges = np.linspace(low, max(high, low + 0.05), BINS + 1)
        counts, _, _ = np.histogram2d(*(np.clip(x, edges[0], edges[-1]) for x in both), bins=(edges, edges))
        found.append(
            Density(
                student=student,
                teacher=teacher,
                low=round(float(edges[0]), 4),
                high=round(float(edges[-1]), 4),
                counts=counts.astype(int).tolist(),
            )
        )
    return found


def text_map(texts: Texts, providers: Sequence[Provider], vectors: Sequence[ArrayLike]) -> list[MapText]:
    """The first ``MAP_TEXTS`` texts, placed by the vectors ``[n, E]`` of the last teacher."""
    count = min(len(texts.texts), MAP_TEXTS)
    if count < 3:
        return []
    units = [unit(np.asarray(x)[:count]) for x in vectors]
    similarities = [x @ x.T for x in units]
    rows = {pair: _disagreement(similarities[pair[0]], similarities[pair[1]]) for pair in pairs_of(providers)}
    students, teachers = (list(dict.fromkeys(side)) for side in zip(*rows))
    nearest = [_nearest(x, min(NEAREST, count - 1)) for x in similarities]
    places = principal_components(units[teachers[-1]], COMPONENTS)
    return [
        MapText(
            text=cut(texts.texts[n]),
            kind=texts.kinds[n],
            place=[round(float(x), 4) for x in places[n]],
            disagreement=[[round(float(rows[s, t][n]), 4) for t in teachers] for s in students],
            nearest=[x[n].tolist() for x in nearest],
        )
        for n in range(count)
    ]


def principal_components(vectors: np.ndarray, most: int) -> np.ndarray:
    """``[n, C]``: ``vectors [n, E]`` less their mean, on their first ``C <= most`` principal directions."""
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    return (left * scale)[:, :most]


def _disagreement(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """``[n]``: 1 less the correlation of each row of ``[n, n]`` without the diagonal; 1 for a constant row."""
    off = ~np.eye(len(student), dtype=bool)
    a, b = (x[off].reshape(len(x), -1).astype(np.float64) for x in (student, teacher))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(axis=1) / np.where(norms > 0, norms, np.inf)


def _nearest(similarities: np.ndarray, count: int) -> np.ndarray:
    """``[n, count]``: the positions of the most similar others, the nearest first; ties go by position."""
    others = similarities.copy()
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, :count]
