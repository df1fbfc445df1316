"""The backward passes written out for CPU, against those that JAX derives for the Flax modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jasper_jax.encoders import attention
from jasper_jax.encoders.parts import dense, layer_norm, rms_norm

MODULES = {
    "linear": lambda dtype: dense(12, 20, std=0.3, dtype=dtype, rngs=nnx.Rngs(0)),
    "linear without bias": lambda dtype: dense(12, 20, std=0.3, dtype=dtype, rngs=nnx.Rngs(0), bias=False),
    "layer norm": lambda dtype: layer_norm(12, 1e-5, dtype=dtype, rngs=nnx.Rngs(0)),
    "layer norm without bias": lambda dtype: layer_norm(12, 1e-5, dtype=dtype, rngs=nnx.Rngs(0), bias=False),
    "rms norm": lambda dtype: rms_norm(12, 1e-6, dtype=dtype, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("dtype", "near"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_flax(name: str, dtype, near: float) -> None:
    module = MODULES[name](dtype)
    definition, state = nnx.split(module)
    draw = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf + draw.normal(size=leaf.shape), jnp.float32), state)
    x = jnp.asarray(3 + draw.normal(size=(2, 5, 12)), dtype)
    direction = jnp.asarray(draw.normal(size=module(x).shape), jnp.float32)

    def value(state, x):
        return nnx.merge(definition, state)(x)

    def loss(state, x):
        return jnp.sum(value(state, x).astype(jnp.float32) * direction)

    def found(platform: str):
        with attention.using(platform, grouped=True):
            return jax.tree.leaves((value(state, x), jax.grad(loss, argnums=(0, 1))(state, x)))

    ours, theirs = found("auto"), found("gpu")  # the GPU's form is Flax's, and runs here as well
    assert len(ours) == len(theirs) >= 3
    for a, b in zip(ours, theirs):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= near * np.abs(b).max()
