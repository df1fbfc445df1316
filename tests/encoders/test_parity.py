"""States and gradients equal transformers', family by family, however padded and whichever way computed."""

from __future__ import annotations

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jasper_jax.encoders import attention
from jasper_jax.encoders.layout import segments_of
from jasper_jax.encoders.pooling import MODES, Pooling
from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.weights import load_params, state_dict
from jasper_jax.runtime.errors import UserError
from tests.encoders.reference import FAMILIES, LONGEST, pad_id, ragged, save, torch_model, torch_states
from tests.families import VARIANTS

KINDS = ("bert", "mpnet", "qwen2-causal", "modernbert")
"""What attention is given differs in these: a mask, a bias, causal grouped queries, windows."""

every_family = pytest.mark.parametrize("family", FAMILIES, scope="module", indirect=True)


def every_kind(names: str, *cases: tuple):
    """Each family with each of ``cases``, values of ``names``: for what attention and the stack of layers do,
    whosever they are. Families that are not in ``KINDS`` are left to the long campaign."""
    values = [
        pytest.param(family, *case, marks=() if family in KINDS else pytest.mark.full)
        for family in FAMILIES
        for case in cases or [()]
    ]
    return pytest.mark.parametrize(("family", *names.split()), values, scope="module", indirect=["family"])


@pytest.fixture(scope="module")
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pair(family, tmp_path_factory):
    """(torch model, encoder, params) with the same weights."""
    model = torch_model(family)
    folder = save(model, tmp_path_factory.mktemp(family))
    encoder = encoder_from_folder(folder)
    return model, encoder, load_params(folder, encoder)


@every_family
@pytest.mark.parametrize("implementation", ["heads_first", "dot_product"])
@pytest.mark.parametrize("side", ["right", "left", "mixed"])
def test_states(pair, family, side, implementation):
    model, encoder, params = pair
    encoder = dataclasses.replace(encoder, attention=implementation)
    ids, mask = ragged(family, side)
    states = np.asarray(encoder.apply(params, ids, mask))
    expected = torch_states(model, ids, mask)
    assert np.isfinite(states).all()
    assert np.abs(states - expected)[mask == 1].max() < 1e-5
    assert np.abs(expected[mask == 1]).max() > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant, tmp_path):
    """States of the settings that ``CASES`` leaves out, and their tensors back as they were."""
    model = torch_model(variant)
    folder = save(model, tmp_path)
    encoder = encoder_from_folder(folder)
    params = load_params(folder, encoder)
    for side in ("right", "left"):
        ids, mask = ragged(variant, side, length=LONGEST)
        states, expected = encoder.apply(params, ids, mask), torch_states(model, ids, mask)
        assert np.abs(states - expected)[mask == 1].max() < 1e-5
    tensors = state_dict(params, encoder)
    theirs = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    assert tensors.keys() == theirs.keys()
    assert all(np.array_equal(tensors[name], theirs[name]) for name in theirs)


@every_family
def test_every_position(pair, family):
    model, encoder, params = pair
    assert encoder.max_positions == LONGEST
    ids, mask = ragged(family, "right", rows=2, length=LONGEST)
    np.testing.assert_allclose(
        np.asarray(encoder.apply(params, ids, mask))[0], torch_states(model, ids, mask)[0], atol=1e-5
    )
    with pytest.raises(UserError, match="positions for 40"):
        encoder.apply(params, np.ones((1, LONGEST + 1), np.int32), np.ones((1, LONGEST + 1), np.int32))


@every_family
def test_gradients(pair, family):
    check_gradients(pair, family, "none")


@every_kind("remat", ("dots",), ("full",))
def test_gradients_of_what_is_recomputed(pair, family, remat):
    check_gradients(pair, family, remat)


def check_gradients(pair, family, remat):
    """Of a random linear function of the states, w.r.t. every tensor, through the weight table."""
    model, encoder, params = pair
    ids, mask = ragged(family, "right")
    direction = np.random.default_rng(1).normal(size=(*ids.shape, encoder.hidden_size)).astype(np.float32)
    direction *= mask[:, :, None]

    def loss(params):
        return (encoder.apply(params, ids, mask, remat=remat) * direction).sum()

    gradients = state_dict(jax.jit(jax.grad(loss))(params), encoder)
    exact = copy.deepcopy(model).double()  # so that the difference is our rounding alone
    states = exact(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state
    (states * torch.tensor(direction)).sum().backward()
    expected = {name: p.grad.numpy() for name, p in exact.named_parameters() if p.grad is not None}
    assert set(expected) == set(gradients)
    scale = max(np.abs(g).max() for g in expected.values())
    for name, gradient in gradients.items():
        if name.endswith(("word_embeddings.weight", "position_embeddings.weight", "tok_embeddings.weight")):
            # torch's padding_idx stops the gradient of that row; no token of a text stands on it
            rows = np.abs(expected[name]).max(axis=1) > 0
            gradient, expected[name] = gradient[rows], expected[name][rows]
        np.testing.assert_allclose(gradient, expected[name], atol=2e-6 * scale, err_msg=name)


@every_kind("")
def test_rows_in_groups(pair, family, monkeypatch):
    """Attention over groups of rows, as for long texts, is attention over all rows."""
    _, encoder, params = pair
    encoder = dataclasses.replace(encoder, attention="heads_first")
    ids, mask = ragged(family, "right", rows=6)

    def run(params):
        return encoder.apply(params, ids, mask)

    whole = run(params)
    assert "while" not in jax.jit(lambda x: attention.attend(x, x, x)).lower(jnp.ones((6, 20, 4, 8))).as_text()
    monkeypatch.setattr(attention, "_CACHE", 2 * 4 * 4 * 20 * 20)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "while" in jax.jit(lambda x: attention.attend(x, x, x)).lower(jnp.ones((6, 20, 4, 8))).as_text()
    np.testing.assert_allclose(run(params), whole, atol=5e-6)  # another order of sums, four layers on


@every_family
def test_padding_and_neighbours_do_not_matter(pair, family):
    _, encoder, params = pair
    ids, mask = ragged(family, "right")
    states = np.asarray(encoder.apply(params, ids, mask))
    n = int(mask[2].sum())
    alone = np.asarray(encoder.apply(params, ids[2:3, :n], mask[2:3, :n]))
    np.testing.assert_allclose(states[2, :n], alone[0], atol=5e-6)


def pack(family: str, ids: np.ndarray, mask: np.ndarray):
    """Tokens, lengths and slots of five texts: three in a row, two and padding in another, none in the last; rows
    longer than the longest text."""
    texts = [row[: n.sum()] for row, n in zip(ids, mask)]
    lengths = np.zeros((3, 4), np.int32)
    packed = np.full((3, LONGEST + 24), pad_id(family), np.int32)
    slots = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    for (row, place), text in zip(slots, texts):
        packed[row, lengths[row].sum() :][: len(text)] = text
        lengths[row, place] = len(text)
    return packed, lengths, tuple(np.array(slots).T)


@every_family
def test_packed_texts_are_what_they_are_alone(pair, family):
    _, encoder, params = pair
    ids, mask = ragged(family, "right", rows=5)
    packed, lengths, slots = pack(family, ids, mask)
    pooling = Pooling(("mean",))
    segments = segments_of(jnp.asarray(lengths), packed.shape[1])
    states = jax.jit(functools.partial(encoder.apply, packed=True))(params, packed, segments)
    vectors = np.asarray(pooling.packed(states, segments, 4))
    np.testing.assert_allclose(vectors[slots], pooling(encoder.apply(params, ids, mask), mask), atol=1e-5)
    empty = vectors[lengths == 0]
    assert len(empty) == 7
    assert not empty.any()


@every_kind("mode implementation", ("mean", "heads_first"), ("lasttoken", "dot_product"))
def test_gradients_of_packed_texts(pair, family, mode, implementation):
    check_packed(pair, family, mode, implementation)


@pytest.mark.full
@pytest.mark.parametrize("family", ["bert", "mpnet"], scope="module", indirect=True)
@pytest.mark.parametrize("implementation", ["heads_first", "dot_product"])
@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_pooling_packed_texts(pair, family, mode, implementation):
    check_packed(pair, family, mode, implementation)


def check_packed(pair, family, mode, implementation):
    """Vectors and gradients of packed texts are those of the texts alone."""
    _, encoder, params = pair
    encoder = dataclasses.replace(encoder, attention=implementation)
    ids, mask = ragged(family, "right", rows=5)
    packed, lengths, slots = pack(family, ids, mask)
    pooling = Pooling((mode,))
    weights = np.random.default_rng(0).normal(size=(5, encoder.hidden_size))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def together(params):
        segments = segments_of(jnp.asarray(lengths), packed.shape[1])
        vectors = pooling.packed(encoder.apply(params, packed, segments, packed=True), segments, 4)
        return (vectors[slots] * weights).sum(), vectors

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def apart(params):
        vectors = pooling(encoder.apply(params, ids, mask), mask)
        return (vectors * weights).sum(), vectors

    (one, vectors), (other, alone) = together(params), apart(params)
    np.testing.assert_allclose(vectors[slots], alone, atol=1e-5)
    scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), one, other)


@every_kind("implementation", ("heads_first",), ("dot_product",))
def test_an_empty_row_is_finite(pair, family, implementation):
    _, encoder, params = pair
    encoder = dataclasses.replace(encoder, attention=implementation)
    ids, mask = ragged(family, "right", rows=3)
    mask[1] = 0

    def total(params):
        states = encoder.apply(params, ids, mask)
        return jnp.where(mask[:, :, None] == 1, states, 0).sum(), states

    (_, states), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert np.isfinite(states).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@every_family
def test_bfloat16_is_near(pair, family):
    _, encoder, params = pair
    ids, mask = ragged(family, "right")
    states = encoder.apply(params, ids, mask, compute_dtype="bfloat16")
    assert states.dtype == jnp.bfloat16
    exact = np.asarray(encoder.apply(params, ids, mask))
    error = np.abs(np.asarray(states, np.float32) - exact)[mask == 1]
    assert 1e-4 < error.mean() < 0.05


@every_family
def test_dropout(pair, family):
    _, encoder, params = pair
    ids, mask = ragged(family, "right")

    def run(rate, seed):
        return np.asarray(encoder.apply(params, ids, mask, dropout=rate, dropout_key=jax.random.key(seed)))

    np.testing.assert_array_equal(run(0.0, 1), encoder.apply(params, ids, mask))
    np.testing.assert_array_equal(run(0.3, 1), run(0.3, 1))
    assert np.abs(run(0.3, 1) - run(0.3, 2)).max() > 0.1
    with pytest.raises(ValueError, match="dropout_key"):
        encoder.apply(params, ids, mask, dropout=0.1)
