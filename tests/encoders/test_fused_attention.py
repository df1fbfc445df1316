"""The TPU's kernel, interpreted on CPU, against the plain form; and which shapes get a kernel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jasper_jax.encoders import attention, splash
from jasper_jax.encoders.attention import attend, form_of, using
from jasper_jax.encoders.layout import Layout, Seen, segments_of
from jasper_jax.encoders.registry import encoder_from_config
from tests.families import CASES, VARIANTS

R, L, H, d = 2, 256, 4, 64
LENGTHS = [[100, 60, 50, 0], [256, 0, 0, 0]]  # three texts and padding; one that fills its row


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)


def operands(kv_heads=2, dtype=jnp.float32, L=L, d=d):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(R, L, H, d))
    k, v = rng.normal(size=(2, R, L, kv_heads, d))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


def seen_of(windows=(None,), causal=False, L=L, packed=True):
    segments = segments_of(jnp.asarray(LENGTHS), L) if packed else jnp.asarray(np.arange(L) >= [[30], [0]], jnp.int32)
    return Seen.of(Layout(segments, packed), windows, causal)


def value_and_gradients(implementation, seen, operands, kind=None):
    """Of a random linear function of the rows where tokens are, w.r.t. query, key and value."""
    keep = 1 if seen is None else (seen.segments > 0)[:, :, None, None]
    direction = jnp.asarray(np.random.default_rng(1).normal(size=operands[0].shape), jnp.float32) * keep

    def loss(operands, kind):
        here = seen if kind is None else seen.at(kind)
        with using(implementation):
            out = attend(*operands, seen=here, scale=0.2)
        return (out * direction).sum(), out * keep

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(operands, kind)
    return out, *gradients


def agree(seen, operands, kind=None, atol=2e-5):
    """The kernel with the plain form in float32."""
    plain = value_and_gradients("heads_first", seen, tuple(x.astype(jnp.float32) for x in operands), kind)
    fused = value_and_gradients("tpu", seen, operands, kind)
    for name, ours, theirs in zip(("value", "dq", "dk", "dv"), fused, plain):
        assert np.isfinite(ours).all()
        scale = float(np.abs(theirs).max())
        assert scale > 0.1
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, atol=atol * scale, err_msg=name)


@pytest.mark.parametrize(
    ("causal", "window"), [(False, None), (True, None), (False, 9), (True, 9), (False, 150), (True, 150)]
)
def test_packed_grouped_queries(causal, window):
    agree(seen_of((window,), causal), operands())


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_other_numbers_of_key_value_heads(kv_heads):
    agree(seen_of(causal=True), operands(kv_heads))


def test_one_text_a_row_padded_before_it():
    agree(seen_of(packed=False), operands())


def test_nothing_hidden():
    agree(None, operands())


def test_several_tiles():
    """384 tokens are three tiles, whose gradients come from two kernels and not from one."""
    agree(seen_of((40,), causal=True, L=384), operands(L=384))


def test_bfloat16():
    agree(seen_of(causal=True), operands(dtype=jnp.bfloat16, d=128), atol=2e-2)


@pytest.mark.parametrize("kind", [0, 1])
def test_kinds_of_layer(kind):
    """Which window it is is known only when the program runs."""
    agree(seen_of((None, 20)), operands(), jnp.int32(kind))


def test_over_a_mesh():
    """Rows over data and fsdp, heads over tensor: read from the program, by the shapes that the kernel has on one
    device of four."""
    mesh = jax.sharding.AbstractMesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    q, k, v = operands()

    def call(q, k, v):
        with using("tpu"):
            return attend(q, k, v, seen=seen_of())

    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(call)(q, k, v))
        assert "shard_map" in program
        assert f"f32[1,{H // 2},{L},{d}]" in program  # one row, half of the heads
        assert "pallas_call" in program
        odd = str(jax.make_jaxpr(call)(q, k[:, :, :1], v[:, :, :1]))
        assert f"f32[1,{H},{L},{d}]" in odd  # one key-value head cannot be shared: all heads on each device
    only_data = jax.sharding.AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(only_data):
        assert f"f32[1,{H},{L},{d}]" in str(jax.make_jaxpr(call)(q, k, v))


def tiny(case, implementation):
    model_type, own = {**CASES, **VARIANTS}[case]
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    hf = {"vocab_size": 60, "max_position_embeddings": 130, **sizes, **own, "model_type": model_type}
    return dataclasses.replace(encoder_from_config(hf), attention=implementation)


WINDOWED = "qwen2, upper layers windowed"
"""Causal, grouped queries, two kinds of layers: what the other cases try apart."""


@pytest.mark.parametrize(
    "case", ["bert", WINDOWED, *(pytest.param(case, marks=pytest.mark.full) for case in ("qwen2-causal", "modernbert"))]
)
def test_encoders(case):
    """States and gradients of packed rows through scanned layers: one kind of layer, and two; recomputed, and not.
    The program has no dense mask; the plain one has."""
    lengths = jnp.asarray([[60, 40, 0], [128, 0, 0]])
    segments = segments_of(lengths, 128)
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 60, segments.shape))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=(*ids.shape, 32)), jnp.float32)
    direction *= (segments > 0)[:, :, None]
    params = tiny(case, "auto").init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 2 else leaf, params)  # weights that prefer some tokens

    def run(implementation, remat):
        def loss(params):
            states = tiny(case, implementation).apply(params, ids, segments, packed=True, remat=remat)
            return (states * direction).sum()

        lowered = jax.jit(jax.value_and_grad(loss)).lower(params)
        return lowered.compile()(params), "x128x128xi1>" in lowered.as_text()

    (value, gradients), dense = run("heads_first", "none")
    assert dense
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for remat in ("none", "dots", "full"):
        (ours, other), dense = run("tpu", remat)
        assert not dense
        np.testing.assert_allclose(ours, value, rtol=1e-4)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), other, gradients)


def shapes(L=256, d=64, dtype=jnp.bfloat16, M=None, rows=8):
    return jax.ShapeDtypeStruct((rows, L, 12, d), dtype), jax.ShapeDtypeStruct((rows, M or L, 4, d), dtype)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ({}, "splash"),
        ({"dtype": jnp.float32}, "splash"),
        ({"dtype": jnp.float16}, "dot_product"),
        ({"L": 128}, "splash"),
        ({"L": 192}, "dot_product"),
        ({"L": 100}, "dot_product"),
        ({"d": 128}, "splash"),
        ({"d": 256}, "splash"),
        ({"d": 72}, "splash"),
        ({"d": 12}, "dot_product"),
        ({"d": 512}, "dot_product"),
        ({"M": 512}, "dot_product"),
    ],
)
def test_which_form_on_tpu(shape, form):
    assert form_of("tpu", *shapes(**shape)) == form
    assert form_of("tpu", *shapes(**shape), biased=True) == "dot_product"


def test_which_form_on_tpu_over_a_mesh():
    """Rows that the devices cannot share equally, and a mesh whose axes hold neither rows nor heads."""
    mesh = jax.sharding.AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        assert form_of("tpu", *shapes(rows=8)) == "splash"
        assert form_of("tpu", *shapes(rows=12)) == "dot_product"
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("other",))):
        assert form_of("tpu", *shapes(rows=12)) == "splash"


@pytest.mark.parametrize(
    ("capability", "shape", "form"),
    [
        (9.0, {}, "cudnn"),
        (8.0, {}, "cudnn"),
        (7.5, {}, "dot_product"),
        (None, {}, "dot_product"),
        (9.0, {"dtype": jnp.float16}, "cudnn"),
        (9.0, {"dtype": jnp.float32}, "dot_product"),
        (9.0, {"L": 192}, "cudnn"),
        (9.0, {"L": 144}, "dot_product"),
        (9.0, {"M": 144}, "dot_product"),
        (9.0, {"M": 512}, "cudnn"),
        (9.0, {"d": 128}, "cudnn"),
        (9.0, {"d": 136}, "dot_product"),
        (9.0, {"d": 12}, "dot_product"),
    ],
)
def test_which_form_on_gpu(monkeypatch, capability, shape, form):
    monkeypatch.setattr(attention, "_cuda_capability", lambda: capability)
    assert form_of("gpu", *shapes(**shape)) == form
    assert form_of("gpu", *shapes(**shape), biased=True) == "dot_product"


def test_what_cudnn_is_given(monkeypatch):
    """A whole mask, as cuDNN takes it for a bias; jax.nn.dot_product_attention's XLA form stands in for it."""
    given = {}
    plain = jax.nn.dot_product_attention

    def stand_in(*operands, implementation, **rest):
        given.update(rest, implementation=implementation)
        return plain(*operands, **rest)

    monkeypatch.setattr(attention, "_cuda_capability", lambda: 9.0)
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = operands(dtype=jnp.bfloat16)
    seen = seen_of(causal=True, packed=False)
    with using("gpu"):
        out = attend(q, k, v, seen=seen)
    assert (given["implementation"], given["is_causal"], given["mask"].shape) == ("cudnn", True, (R, 1, L, L))
    with using("heads_first"):
        expected = attend(q, k, v, seen=seen)
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (out, expected)), atol=3e-2)


def test_which_form_by_the_backend(monkeypatch):
    for backend, form in (("cpu", "heads_first"), ("tpu", "splash"), ("gpu", "cudnn"), ("METAL", "dot_product")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(attention, "_cuda_capability", lambda: 9.0)
        assert form_of("auto", *shapes()) == form
        assert form_of("heads_first", *shapes()) == "heads_first"
        assert form_of("dot_product", *shapes()) == "dot_product"


def test_a_machine_without_cuda():
    assert attention._cuda_capability() is None
    assert form_of("gpu", *shapes()) == "dot_product"
