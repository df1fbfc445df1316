"""What shorter vectors cost without any training: a teacher's vectors cut short, and projected by an SVD.

A student that is no better than these at equal cost is not worth its training, so they stand beside it in every table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jasper_jax.evaluation.similarity import truncate

SAMPLE = 20_000
"""The most training texts from whose vectors the SVD is computed, evenly spread over those that have vectors."""


def sample(size: int) -> np.ndarray:
    """Of ``size`` texts, those from which the SVD is computed, ascending."""
    return np.unique(np.linspace(0, size - 1, min(size, SAMPLE)).astype(np.int64))


def principal_directions(vectors: np.ndarray) -> np.ndarray:
    """The right singular vectors ``[T, T]`` of unit vectors ``[n, T]``, by falling singular value.

    Projected onto the first d of them, the vectors keep as much of their squared length as d dimensions can, and so
    their inner products (the mean is not subtracted: cosines are taken from the origin).
    """
    _, directions = np.linalg.eigh(np.asarray(vectors.T @ vectors, np.float64))
    return directions[:, ::-1].astype(np.float32)


def shortened(
    vectors: Mapping[str, np.ndarray], dims: Sequence[int], directions: np.ndarray | None, cut_above: int = 0
) -> Iterator[tuple[str, int, dict[str, np.ndarray]]]:
    """``(how, dim, vectors)`` of each way to shorten a teacher's ``vectors``, lists of ``[n, T]`` by name, to each of
    ``dims`` below T: "cut" to the first components, where they are more than ``cut_above``, and, where ``directions``
    are known, their "SVD"."""
    width = next(iter(vectors.values())).shape[1]
    ways = {"cut": vectors}
    if directions is not None:
        ways["SVD"] = {name: x @ directions for name, x in vectors.items()}
    for how, rows in ways.items():
        for dim in sorted({dim for dim in dims if dim < width}, reverse=True):
            if how != "cut" or dim > cut_above:
                yield how, dim, {name: truncate(x, dim) for name, x in rows.items()}
