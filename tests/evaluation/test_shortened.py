"""A teacher's vectors in fewer dimensions, without training."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from jasper_jax.evaluation.shortened import SAMPLE, principal_directions, sample, shortened
from jasper_jax.evaluation.similarity import truncate, unit
from jasper_jax.evaluation.teachers import _joined, _Provider
from jasper_jax.teachers.vectors import concatenate


def vectors(n: int, width: int = 12) -> np.ndarray:
    """Unit vectors with a mean, and a spectrum that falls."""
    rng = np.random.default_rng(0)
    return unit(
        rng.normal(size=(n, width))
        @ np.diag(2.0 ** -np.arange(width))
        @ np.linalg.qr(rng.normal(size=(width, width)))[0]
        + 0.05
    )


def test_the_directions_are_the_right_singular_vectors() -> None:
    x = vectors(200)
    directions = principal_directions(x)
    expected = np.linalg.svd(x.astype(np.float64))[2]
    np.testing.assert_allclose(np.abs(np.einsum("td,dt->d", directions, expected)), 1, atol=1e-4)


def test_a_few_directions_keep_the_inner_products_better_than_the_first_components() -> None:
    x = vectors(200)
    found = {how: rows["x"] for how, _, rows in shortened({"x": x}, [3], principal_directions(x))}
    error = {how: np.abs(rows @ rows.T - x @ x.T).mean() for how, rows in found.items()}
    assert error["SVD"] < 0.3 * error["cut"]


def test_only_dimensions_below_the_teachers_and_no_svd_without_directions() -> None:
    x = vectors(20)
    found = list(shortened({"x": x}, [4, 12, 8, 4, 16], None))
    assert [(how, dim) for how, dim, _ in found] == [("cut", 8), ("cut", 4)]
    np.testing.assert_array_equal(found[0][2]["x"], truncate(x, 8))


def test_concatenated_teachers_are_not_cut_to_the_first_of_them() -> None:
    first, second = (_Provider(name, {"x": vectors(20)}, vectors(30), 1) for name in "ab")
    tests = SimpleNamespace(score=lambda lists, reference: {}, lists={"x": None})
    rows = list(_joined([first, second], [1, 1]).shortened([20, 12, 8], tests, None))  # pyright: ignore[reportArgumentType]
    assert [(row.provider.removeprefix("teachers concatenated, "), row.dim) for row in rows] == [
        ("cut", 20),
        ("SVD", 20),
        ("SVD", 12),
        ("SVD", 8),
    ]
    assert [row.dim for row in first.shortened([8], tests, None)] == [8, 8]  # pyright: ignore[reportArgumentType]
    joined = concatenate([first.vectors["x"], second.vectors["x"]], [1, 1])
    for dim in (12, 8):  # why: they would be the same vectors
        np.testing.assert_allclose(truncate(joined, dim), truncate(first.vectors["x"], dim), atol=1e-6)


def test_the_sample_is_spread_evenly() -> None:
    assert sample(5).tolist() == [0, 1, 2, 3, 4]
    rows = sample(10 * SAMPLE)
    assert len(rows) == SAMPLE
    assert (rows[0], rows[-1]) == (0, 10 * SAMPLE - 1)
    assert set(np.diff(rows)) <= {9, 10, 11}
