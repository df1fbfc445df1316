"""Encoding and pooling in one place: the train step and the embedder ask the same function."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jasper_jax.embedder import Embedder
from jasper_jax.encoders.dense import ACTIVATIONS, dense
from jasper_jax.encoders.packed import encode_packed
from tests.tiny import sentences, write_model


def test_without_slots_vectors_come_by_row_and_place(tmp_path) -> None:
    embedder = Embedder.load(write_model(tmp_path / "model"))
    first, second, third = embedder.tokenizer.encode(sentences(3))
    lengths = np.array([[len(first), len(second)], [len(third), 0]], np.int32)
    ids = np.ones((2, 64), np.int32)
    ids[0, : lengths[0].sum()] = np.concatenate([first, second])
    ids[1, : len(third)] = third
    rows = {"ids": ids, "lengths": lengths}
    found = encode_packed(embedder.encoder, embedder.pooling, embedder.params, jax.tree.map(jax.numpy.asarray, rows))
    np.testing.assert_allclose(found[:3], embedder.pooled(sentences(3)), atol=1e-5)
    np.testing.assert_array_equal(found[3], 0)
    slots = np.array([2, 0, 1], np.int32)
    packed = {name: jax.numpy.asarray(x) for name, x in {**rows, "slots": slots}.items()}
    np.testing.assert_array_equal(
        encode_packed(embedder.encoder, embedder.pooling, embedder.params, packed), np.asarray(found)[slots]
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_steps_have_full_precision(activation) -> None:
    x, kernel = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    steps = [(kernel, None), (kernel, np.ones(5, np.float32))]
    expected = ACTIVATIONS[activation](x @ kernel @ kernel + 1)
    np.testing.assert_allclose(dense(x, steps, ("identity", activation)), expected, rtol=1e-4, atol=1e-5)
    text = jax.jit(lambda x, w: dense(x, w, ("identity", activation))).lower(x, steps).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 2
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in dots)
