"""What each policy of recomputation computes again: products of matrices, products of attention, or nothing."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

from jasper_jax.encoders.tower import REMAT, scan_layers
from jasper_jax.recipe.config import Student, Vision

N, R, L, D = 2, 3, 8, 4


def layer(kernel: jax.Array, x: jax.Array, index: jax.Array) -> jax.Array:
    """One product with a matrix, one batched product as in attention, and a function between whose input is needed."""
    h = jnp.tanh(x @ kernel)
    scores = jnp.sin(jnp.einsum("rld,rmd->rlm", h, h))
    return jnp.einsum("rlm,rmd->rld", scores, h)


@pytest.mark.parametrize(("remat", "matrices", "batched"), [("none", 1, 2), ("dots", 1, 3), ("full", 2, 3)])
def test_what_is_computed_again(remat: str, matrices: int, batched: int) -> None:
    """Products of the forward pass and of the recomputation, beside those of the gradient (2 and 4 in every case)."""
    layers, x = 0.3 * jnp.ones((N, D, D)), jnp.linspace(-1.0, 1.0, R * L * D).reshape(R, L, D)

    def loss(layers: jax.Array, remat: str) -> jax.Array:
        return scan_layers(layer, layers, x, remat=remat).sum()

    text = str(jax.make_jaxpr(jax.grad(lambda layers: loss(layers, remat)))(layers))
    of_batches = len(re.findall(r"dimension_numbers=\(\(\[\d\], \[\d\]\), \(\[0\], \[0\]\)\)", text))
    assert of_batches == 4 + batched
    assert text.count("dot_general[") - of_batches == 2 + matrices
    expected = jax.grad(loss)(layers, "none")
    assert jnp.allclose(jax.grad(loss)(layers, remat), expected, rtol=1e-6)


def test_names_in_a_recipe() -> None:
    """Recipes of earlier runs have a boolean."""
    for written, name in [*((name, name) for name in REMAT), (True, "full"), (False, "none")]:
        assert Student(model="m", remat=written).remat == name  # pyright: ignore[reportArgumentType]
        assert Vision(model="m", remat=written).remat == name  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'none', 'dots' or 'full'"):
        Student(model="m", remat="some")  # pyright: ignore[reportArgumentType]
