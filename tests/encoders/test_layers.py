"""Some layers of a model are a model; two stacks are one; initialisation is the family's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.registry import encoder_from_config, encoder_from_folder, keep_layers
from jasper_jax.encoders.weights import load_params
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.runtime.errors import UserError
from tests.encoders.reference import FAMILIES, ragged, save, torch_model, torch_states
from tests.encoders.stacks import split_layers
from tests.families import CASES


def keep_in_torch(model, layers):
    stack = model.encoder if hasattr(model, "encoder") else model
    name = "layer" if hasattr(stack, "layer") else "layers"
    setattr(stack, name, torch.nn.ModuleList(getattr(stack, name)[i] for i in layers))
    model.config.use_cache = False
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2, upper layers windowed"])
@pytest.mark.parametrize("layers", [[0, 2], [3, 1, 0]])
def test_kept_layers_equal_a_torch_model_with_those_layers(family, layers, tmp_path):
    model = torch_model(family)
    folder = save(model, tmp_path)
    full = encoder_from_folder(folder)
    if family == "modernbert" and layers[0]:
        with pytest.raises(UserError, match="the first layer of modernbert differs from the rest"):
            keep_layers(full.hf_config, layers)
        return
    config, chosen = keep_layers(full.hf_config, layers)
    encoder = encoder_from_config(config)
    assert encoder.num_layers == len(layers)
    keep_in_torch(model, layers)
    ids, mask = ragged(family, "right")
    states = np.asarray(encoder.apply(load_params(folder, encoder, layers=chosen), ids, mask))
    assert np.abs(states - torch_states(model, ids, mask))[mask == 1].max() < 1e-5


@pytest.mark.parametrize("layers", [[], [4], [-1], [0, True], [0.5]])
def test_layers_that_are_not_there(layers):
    with pytest.raises(UserError, match="0 to 3"):
        keep_layers({"model_type": "bert", "num_hidden_layers": 4}, layers)


def test_layer_count_must_agree_with_the_encoder(tmp_path):
    folder = save(torch_model("bert"), tmp_path)
    encoder = encoder_from_folder(folder)
    with pytest.raises(UserError, match="expected 4, got 2"):
        load_params(folder, encoder, layers=[0, 1])


@pytest.fixture(scope="module")
def bert() -> tuple[Encoder, dict]:
    encoder = encoder_from_config(
        {
            "model_type": "bert",
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "initializer_range": 0.2,
        }
    )
    return encoder, encoder.init(jax.random.key(0))


@pytest.mark.parametrize("k", [0, 1, 3, 4])
def test_two_stacks_equal_one(bert, k):
    encoder, params = bert
    ids, mask = ragged("bert", "right")
    split = split_layers(params, k)
    assert [jax.tree.leaves(stack)[0].shape[0] for stack in split["layers"]] == [4 - k, k]
    np.testing.assert_allclose(encoder.apply(split, ids, mask), encoder.apply(params, ids, mask), atol=2e-6, rtol=0)


def test_dropout_does_not_depend_on_the_split(bert):
    encoder, params = bert
    ids, mask = ragged("bert", "right")

    def run(params):
        return encoder.apply(params, ids, mask, dropout=0.2, dropout_key=jax.random.key(3))

    np.testing.assert_allclose(run(split_layers(params, 2)), run(params), atol=2e-6)


def test_the_gradient_of_the_last_stack_alone(bert):
    """What a stage that trains the last layers computes is the same slice of the full gradient."""
    encoder, params = bert
    ids, mask = ragged("bert", "right")

    def loss(params):
        return jnp.sin(encoder.apply(params, ids, mask)).sum()

    frozen, trained = split_layers(params, 1)["layers"]
    last = jax.grad(lambda stack: loss({**params, "layers": (frozen, stack)}))(trained)
    full = flatten(jax.grad(loss)(params)["layers"])
    for name, leaf in flatten(last).items():
        np.testing.assert_allclose(leaf[0], full[name][3], atol=1e-4, err_msg=name)


def test_layers_are_scanned_not_unrolled(bert):
    encoder, _ = bert
    ids, mask = ragged("bert", "right")
    deeper = encoder_from_config({**encoder.hf_config, "num_hidden_layers": 16})
    programs = [jax.jit(e.apply).lower(e.init(jax.random.key(0)), ids, mask).as_text() for e in (encoder, deeper)]
    assert programs[0].count("dot_general") == programs[1].count("dot_general")


@pytest.mark.parametrize("family", FAMILIES)
def test_initialisation(family):
    model_type, settings = CASES[family]
    config = {"model_type": model_type, "vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 3}
    encoder = encoder_from_config({**config, "num_attention_heads": 4, "intermediate_size": 128, **settings})
    params = flatten(encoder.init(jax.random.key(0)))
    assert {path: leaf.shape for path, leaf in params.items()} == encoder.shapes()
    for path, leaf in params.items():
        kind = path.rsplit("/", 1)[1]
        if kind in ("kernel", "embedding"):
            assert float(leaf.std()) == pytest.approx(0.02, rel=0.15), path
        else:
            assert (np.asarray(leaf) == (1.0 if kind == "scale" else 0.0)).all(), path
    words = params.get("embeddings/word/embedding", params.get("embeddings/embedding"))
    decoder = model_type in ("llama", "mistral", "qwen2", "qwen3")  # masks padding, and has no row for it
    assert np.asarray(words[encoder.config.pad_id]).any() == decoder
    kernels = np.asarray(params["layers/attention/query/kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01, "layers must not start equal"
    other = encoder.init(jax.random.key(1))
    assert np.abs(np.asarray(other["layers"]["attention"]["query"]["kernel"]) - kernels).max() > 0.01


def test_an_encoder_is_a_static_argument(bert):
    encoder, _ = bert
    twin = encoder_from_config(encoder.hf_config)
    assert twin == encoder
    assert hash(twin) == hash(encoder)
    assert encoder_from_config({**encoder.hf_config, "num_hidden_layers": 2}) != encoder


NOMIC = {"n_embd": 768, "rotary_emb_fraction": 1.0} | dict.fromkeys(
    ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False
)
"""What the hub's nomic configs say besides, so that the setting looked at is the one that is refused."""


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("bert", {"position_embedding_type": "relative_key"}),
        ("bert", {"hidden_act": "mish"}),
        ("bert", {"is_decoder": True}),
        ("bert", {"add_cross_attention": True}),
        ("bert", {"hidden_size": 30}),
        ("bert", {"num_hidden_layers": "6"}),
        ("bert", {"layer_norm_eps": -1}),
        ("mpnet", {"relative_attention_num_buckets": 64}),
        ("mpnet", {"pad_token_id": 0}),
        ("mpnet", {"hidden_act": "mish"}),
        ("llama", {"num_key_value_heads": 5}),
        ("llama", {"hidden_act": "relu2"}),
        ("qwen2", {"is_causal": "no"}),
        ("qwen2", {"rope_scaling": {"type": "longrope"}}),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": None}}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": -2}}),
        ("qwen2", {"layer_types": ["chunked_attention"]}),
        ("qwen3", {"head_dim": 0}),
        ("mistral", {"sliding_window": 0}),
        ("roberta", {"position_embedding_type": "relative_key"}),
        ("new", {"position_embedding_type": "absolute"}),
        ("new", {"layer_norm_type": "rms_norm"}),
        ("nomic_bert", {"rotary_emb_interleaved": True, **NOMIC}),
        ("nomic_bert", {"num_experts": 8, **NOMIC}),
        ("nomic_bert", {"rotary_emb_fraction": 0.5, **{k: v for k, v in NOMIC.items() if "fraction" not in k}}),
        ("modernbert", {"local_attention": 0}),
        ("modernbert", {"hidden_activation": "mish"}),
        ("nvembed", {"text_config": None}),
    ],
)
def test_settings_that_are_not_implemented_are_named(family, setting):
    key, value = next(iter(setting.items()))
    with pytest.raises(UserError, match=f"some/config.json.*{key}") as raised:
        encoder_from_config({"model_type": family, **setting}, "some/config.json")
    assert isinstance(value, dict) or value is None or str(value) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_model_type_lists_the_families():
    with pytest.raises(UserError, match=r"'brt' is not implemented; families are bert, .*did you mean 'bert'"):
        encoder_from_config({"model_type": "brt"})


def test_remote_code_is_refused():
    config = {"model_type": "mystery", "auto_map": {"AutoModel": "modeling.Mystery"}}
    with pytest.raises(UserError, match=r"'mystery' is defined by code in the model folder.*never.*bert"):
        encoder_from_config(config)
    # a family we have is read by our own code, whatever the folder offers
    encoder_from_config({"model_type": "bert", "auto_map": {"AutoModel": "modeling.Mystery"}})
    # but a decoder's may be bidirectional for no other reason than its code
    config = {"model_type": "qwen2", "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}
    with pytest.raises(UserError, match="whether its attention is causal.*set causal"):
        encoder_from_config(config)
    assert encoder_from_config({**config, "is_causal": False}).config.causal is False


def test_flatten_and_back():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
    assert flatten({"layers": ({"x": 1}, {"x": 2})}) == {"layers/0/x": 1, "layers/1/x": 2}
    for wrong in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
        with pytest.raises(ValueError, match="a"):
            unflatten(wrong)
