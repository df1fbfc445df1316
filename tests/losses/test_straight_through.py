"""Rounded vectors with the gradient of unrounded ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.encoders.quantization import measure_ranges, quantize
from jasper_jax.losses.straight_through import ROUNDED, straight_through

VECTORS = np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)


def cosines(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@pytest.mark.parametrize("dim", [16, 8])
@pytest.mark.parametrize("precision", ROUNDED)
def test_cosines_are_those_of_the_codes_of_an_index(precision: str, dim: int) -> None:
    found = np.asarray(straight_through(VECTORS, precision))[:, :dim]
    if precision == "int8":
        codes = quantize(VECTORS, "int8", measure_ranges(VECTORS))[:, :dim]
    else:
        bits = np.unpackbits(quantize(VECTORS[:, :dim], "ubinary"), axis=1)[:, :dim]
        codes = 2.0 * bits - 1
    np.testing.assert_allclose(cosines(found), cosines(codes), atol=1e-6)
    assert not np.allclose(found, VECTORS[:, :dim], atol=1e-4)


@pytest.mark.parametrize("precision", ROUNDED)
def test_the_gradient_passes_as_if_nothing_were_rounded(precision: str) -> None:
    weights = np.random.default_rng(1).normal(size=VECTORS.shape).astype(np.float32)
    gradient = jax.grad(lambda x: (straight_through(x, precision) * weights).sum())(jnp.asarray(VECTORS))
    np.testing.assert_array_equal(gradient, weights)


@pytest.mark.parametrize("precision", ROUNDED)
def test_zeros_stay_finite(precision: str) -> None:
    assert np.isfinite(straight_through(np.zeros((2, 4), np.float32), precision)).all()


def test_another_precision() -> None:
    with pytest.raises(ValueError, match="expected int8 or binary"):
        straight_through(VECTORS, "int4")
