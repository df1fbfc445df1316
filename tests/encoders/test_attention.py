"""The plain forms of attention against the formula written out in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.encoders.attention import attend, using
from jasper_jax.encoders.layout import Layout, Seen

B, L, H, d = 3, 7, 4, 8


def oracle(q, k, v, mask, bias, causal, scale):
    groups = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, groups, axis=2), np.repeat(v, groups, axis=2)
    scores = np.einsum("blhd,bmhd->bhlm", q, k) * scale
    scores = scores if bias is None else scores + bias
    allowed = np.ones(scores.shape, bool) if mask is None else np.broadcast_to(mask, scores.shape)
    if causal:
        allowed = allowed & np.tril(np.ones((L, L), bool))
    scores = np.where(allowed, scores, -1e30)  # finite: padding of a packed row sees nothing
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhlm,bmhd->blhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("implementation", ["heads_first", "dot_product"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", ["none", "padding", "packed", "bias", "bias of each row"])
def test_against_the_formula(implementation, kv_heads, causal, extra):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, L, H, d))
    k, v = rng.normal(size=(2, B, L, kv_heads, d))
    segments, packed, mask, bias = np.ones((B, L), np.int32), extra == "packed", None, None
    if extra == "padding":
        segments = np.asarray(np.arange(L)[None, :] < np.array([7, 3, 1])[:, None], np.int32)
        mask = segments[:, None, None, :] == 1
    elif packed:
        segments = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 3, 0], [1, 2, 2, 0, 0, 0, 0]], np.int32)
        mask = (segments[:, None, :, None] == segments[:, None, None, :]) & (segments > 0)[:, None, None, :]
    elif extra.startswith("bias"):
        bias = rng.normal(size=(B if "row" in extra else 1, H, L, L))
    expected = oracle(q, k, v, mask, bias, causal, 0.3)
    seen = Seen.of(Layout(jnp.asarray(segments), packed), causal=causal) if causal or mask is not None else None
    with using(implementation):
        out = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), seen=seen, bias=bias, scale=0.3)
    rows = segments > 0
    np.testing.assert_allclose(out[rows], expected[rows], atol=2e-6)


@pytest.mark.parametrize("implementation", ["heads_first", "dot_product"])
def test_softmax_is_float32_for_bfloat16_inputs(implementation):
    """512 equal scores: in bfloat16 a sum of ones stops growing at 256."""
    x = jnp.zeros((1, 512, 1, 8), jnp.bfloat16)
    with using(implementation):
        out = attend(x, x, jnp.ones_like(x))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1.0)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="heads_first"), using("flash"):
        pass
