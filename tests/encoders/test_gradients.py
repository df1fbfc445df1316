"""The backward passes written out for CPU, against those that JAX derives for the Flax modules."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from jasper_jax.encoders import attention, gradients
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


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("summed", "dtype"), [("float32", jnp.float32), ("bfloat16", jnp.bfloat16)])
def test_weights_gradients_are_summed_in_the_chosen_dtype(platform: str, summed: str, dtype) -> None:
    """The product that sums over tokens, whose parts the devices of a mesh add, has that dtype."""
    module = dense(12, 20, std=0.3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    definition, state = nnx.split(module)

    def loss(state, x):
        with attention.using("auto" if platform == "cpu" else platform):
            return nnx.merge(definition, state)(x).astype(jnp.float32).sum()

    with gradients.summed_in(summed):
        program = jax.make_jaxpr(jax.grad(loss))(state, jnp.ones((8, 12), jnp.bfloat16))
    products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
    (of_kernel,) = [e.outvars[0].aval for e in products if sorted(e.outvars[0].aval.shape) == [12, 20]]
    assert of_kernel.dtype == dtype
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


def test_a_sum_in_float32_keeps_what_bfloat16_rounds_away() -> None:
    module = dense(1, 1, std=0.3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    definition, state = nnx.split(module)
    x = jnp.full((257, 1), 1.0, jnp.bfloat16)  # 257 is no bfloat16

    def found(summed: str) -> float:
        with gradients.summed_in(summed):
            slope = jax.grad(lambda s: nnx.merge(definition, s)(x).astype(jnp.float32).sum())(state)
        return float(slope["kernel"][...][0, 0])

    assert (found("float32"), found("bfloat16")) == (257.0, 256.0)


def equations(jaxpr):
    """All equations of a program, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
