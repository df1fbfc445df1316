"""Every pooling mode against sentence-transformers', whichever side the padding is on."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling as TorchPooling

from jasper_jax.encoders.pooling import MODES, Pooling
from jasper_jax.runtime.errors import UserError

B, L, D = 5, 9, 6
PROMPT = 2


def batch(side):
    rng = np.random.default_rng(0)
    mask = np.zeros((B, L), np.int32)
    for row, n in enumerate([9, 3, 5, 8, 4]):
        mask[row, slice(0, n) if side == "right" else slice(L - n, L)] = 1
    return rng.normal(size=(B, L, D)).astype(np.float32), mask


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), ("cls", "max", "mean")])
def test_equals_sentence_transformers(modes, include_prompt, side):
    states, mask = batch(side)
    pooling = Pooling(modes, include_prompt=include_prompt)
    ours = pooling(states, mask, np.full(B, PROMPT, np.int32))
    module = TorchPooling(D, modes, include_prompt=include_prompt)
    features = {"token_embeddings": torch.tensor(states), "attention_mask": torch.tensor(mask)}
    theirs = module({**features, "prompt_length": PROMPT})["sentence_embedding"].numpy()
    assert ours.shape == (B, pooling.size(D))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_what_padding_holds_does_not_matter(mode):
    states, mask = batch("right")
    other = np.where(mask[:, :, None] == 1, states, 1e6).astype(np.float32)
    np.testing.assert_array_equal(Pooling((mode,))(other, mask), Pooling((mode,))(states, mask))


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_tokens_is_zero_with_a_finite_gradient(mode):
    states, mask = batch("right")
    mask[1] = 0
    vectors = Pooling((mode,))(states, mask)
    assert not np.asarray(vectors[1]).any()
    gradient = jax.grad(lambda x: (Pooling((mode,))(x, mask) ** 2).sum())(states)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[1]).any()
    assert np.asarray(gradient[0]).any()


def test_sums_are_float32_for_bfloat16_states():
    """300 ones: in bfloat16 the sum stops at 256."""
    states = jax.numpy.ones((1, 300, 2), jax.numpy.bfloat16)
    vectors = Pooling(("mean",))(states, np.ones((1, 300), np.int32))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, 1.0)


def test_each_text_has_its_own_prompt_length():
    states, mask = batch("right")
    pooling = Pooling(("mean",), include_prompt=False)
    lengths = np.array([0, 1, 2, 3, 1], np.int32)
    vectors = pooling(states, mask, lengths)
    for row, n in enumerate(mask.sum(1)):
        np.testing.assert_allclose(vectors[row], states[row, lengths[row] : n].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="prompt_lengths"):
        pooling(states, mask)


def test_unknown_mode():
    with pytest.raises(UserError, match="'median' is unknown; cls, max, mean"):
        Pooling(("mean", "median"))
    with pytest.raises(UserError, match="unknown"):
        Pooling(())
