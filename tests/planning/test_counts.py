"""Operations of scanned, nested and conditional programs against counts made by hand; one device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.planning.chips import TPUS
from jasper_jax.planning.work import analyse

N, B, D, F = 5, 32, 64, 96
PRODUCT = 2 * B * D * F


@pytest.fixture
def mesh():
    device = jax.devices("cpu")[0]
    with jax.default_device(device):
        yield jax.sharding.Mesh(np.array([device]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))


def count(mesh, function, *arguments):
    return analyse(jax.jit(function).lower(*arguments).compile(), mesh)


def test_kernels_one_after_another(mesh):
    """A product bound by operations and one bound by memory: each at its own floor, the loop's as often as it runs."""
    rates = dataclasses.replace(TPUS["v5e"], peak_flops=1e3, bandwidth=1e3)

    def products(x, stack, wide):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, stack)[0], wide @ wide.T

    arrays = jnp.ones((8, 64)), jnp.ones((N, 64, 64)), jnp.ones((1, 64))
    found = analyse(jax.jit(products).lower(*arrays).compile(), mesh, device=rates)
    alone = N * 2 * 8 * 64 * 64 + 4 * (64 + 64 + 1)
    assert alone <= 1e3 * found.serial_seconds <= found.flops + found.hbm_bytes
    assert analyse(jax.jit(products).lower(*arrays).compile(), mesh).serial_seconds == 0


def mlp_params():
    return {"up": jnp.ones((N, D, F)), "down": jnp.ones((N, F, D))}


def mlp(h, p):
    return jnp.tanh(jnp.tanh(h @ p["up"]) @ p["down"]), None


@pytest.mark.parametrize("recompute", [False, True])
def test_scanned_mlp_forward_and_backward(mesh, recompute: bool):
    layer = jax.checkpoint(mlp) if recompute else mlp

    def loss(params, x):
        return (jax.lax.scan(layer, x, params)[0] ** 2).sum()

    # Two products forward, two for each backward; recomputing repeats both: the outer tanh needs its own value.
    products = 8 if recompute else 6
    found = count(mesh, jax.grad(loss), mlp_params(), jnp.ones((B, D)))
    assert found.flops == pytest.approx(products * N * PRODUCT, rel=0.01)
    assert not found.unknown_loops
    assert not found.collectives


def test_nested_scans_multiply(mesh):
    def outer(h, p):
        return jax.lax.scan(lambda h, _: mlp(h, p), h, None, length=7)[0], None

    found = count(mesh, lambda p, x: jax.lax.scan(outer, x, p)[0], mlp_params(), jnp.ones((B, D)))
    assert found.flops == pytest.approx(2 * 7 * N * PRODUCT, rel=0.01)


def test_batched_product(mesh):
    found = count(mesh, lambda a, b: jnp.einsum("blhe,bmhe->bhlm", a, b), *[jnp.ones((4, 16, 3, 8))] * 2)
    assert found.flops == 2 * 4 * 3 * 16 * 16 * 8


def test_the_larger_branch_counts(mesh):
    w = jnp.ones((D, D))

    def branches(which, x):
        return jax.lax.switch(which, [lambda x: x, lambda x: x @ w @ w.T, lambda x: x @ w], x)

    assert count(mesh, branches, jnp.int32(0), jnp.ones((B, D))).flops == pytest.approx(2 * 2 * B * D * D)


def test_a_loop_that_depends_on_data_is_named(mesh):
    def until_small(x):
        return jax.lax.while_loop(lambda h: jnp.abs(h).max() > 1, lambda h: h @ (0.01 * jnp.eye(D)), x)

    found = count(mesh, until_small, jnp.ones((B, D)))
    assert len(found.unknown_loops) == 1
    assert found.flops == pytest.approx(2 * B * D * D)


def test_a_scan_reads_every_layer_once(mesh):
    """Not the whole stack in every iteration."""
    layers, width = 50, 128
    stack, x = np.ones((layers, width, width), np.float32), np.ones((4, width), np.float32)
    found = count(mesh, lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0], stack, x)
    assert stack.nbytes <= found.hbm_bytes < 6 * stack.nbytes


def test_memory_is_that_of_the_program(mesh):
    found = count(mesh, lambda x: x @ x.T, jnp.ones((256, 128))).memory
    assert (found.arguments, found.outputs, found.aliased) == (256 * 128 * 4, 256 * 256 * 4, 0)
    assert found.peak >= found.arguments + found.outputs
