"""Checkpoints in and out: what transformers wrote is read, what is written transformers reads; nothing is guessed."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

from jasper_jax.encoders.registry import encoder_from_config, encoder_from_folder
from jasper_jax.encoders.weights import load_params, save, state_dict
from jasper_jax.parameters.trees import flatten
from jasper_jax.runtime.errors import UserError
from tests.encoders.reference import FAMILIES, ragged, torch_model, torch_states
from tests.encoders.reference import save as save_torch
from tests.encoders.stacks import split_layers
from tests.families import CASES


def read(folder, **options):
    encoder = encoder_from_folder(folder)
    return encoder, load_params(folder, encoder, **options)


@pytest.fixture
def bert(tmp_path):
    """A folder and the tensors in it, for tests that spoil them."""
    folder = save_torch(torch_model("bert", layers=2), tmp_path / "bert")
    tensors = {name: torch.tensor(value) for name, value in load_file(folder / "model.safetensors").items()}
    return folder, tensors


def rewrite(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_through_transformers(family, tmp_path):
    """Random parameters here -> folder -> transformers gives the same states -> folder -> the same parameters."""
    model_type, settings = CASES[family]
    encoder = encoder_from_config(
        {
            "model_type": model_type,
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 42,
            "initializer_range": 0.2,
            **settings,
        }
    )
    params = encoder.init(jax.random.key(0))
    save(params, encoder, tmp_path / "ours")
    bare = {"add_pooling_layer": False} if model_type in ("bert", "mpnet", "roberta", "xlm-roberta") else {}
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours", **bare).eval()
    expected = {name: value.numpy() for name, value in model.state_dict().items()}
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(np.array_equal(written[name], expected[name]) for name in written)
    ids, mask = ragged(family, "right")
    states = np.asarray(encoder.apply(params, ids, mask))
    assert np.abs(states - torch_states(model, ids, mask))[mask == 1].max() < 1e-5

    model.save_pretrained(tmp_path / "theirs")
    again, read_back = read(tmp_path / "theirs")
    assert again.config == encoder.config
    assert same(read_back, params)


def test_state_dict_of_two_stacks(bert):
    folder, tensors = bert
    encoder, params = read(folder)
    exported = state_dict(split_layers(params, 1), encoder)
    kept = {name: value for name, value in tensors.items() if not name.startswith("pooler.")}
    assert exported.keys() == kept.keys()
    assert all(np.array_equal(exported[name], kept[name]) for name in kept)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints(bert, stored):
    folder, tensors = bert
    rewrite(folder, {name: value.to(stored) for name, value in tensors.items()})
    encoder, params = read(folder)
    flat = flatten(params)
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    expected = tensors["encoder.layer.1.output.dense.weight"].to(stored).float().numpy().T
    np.testing.assert_array_equal(flat["layers/feed_forward/down/kernel"][1], expected)

    save(load_params(folder, encoder, dtype="bfloat16"), encoder, folder / "half")
    assert json.loads((folder / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    model = transformers.AutoModel.from_pretrained(folder / "half", dtype="auto", add_pooling_layer=False)
    assert model.dtype == torch.bfloat16
    assert flatten(read(folder / "half", dtype="bfloat16")[1])["embeddings/norm/scale"].dtype == ml_dtypes.bfloat16


def test_shards(tmp_path):
    model = torch_model("bert")
    whole = read(save_torch(model, tmp_path / "one"))[1]
    folder = save_torch(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert same(read(folder)[1], whole)

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = sorted(index["weight_map"].values())[0]
    moved = dict.fromkeys(index["weight_map"], first)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(UserError, match=r"index.json.*which is not in that file"):
        read(folder)
    outside = {name: f"../one/{file}" for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": outside}))
    with pytest.raises(UserError, match="must be in the same folder"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / first).unlink()
    with pytest.raises(UserError, match=f"{first}: no such file"):
        read(folder)


@pytest.mark.parametrize("prefix", ["bert.", "model.", "0.auto_model.", "module.bert."])
def test_prefixes(bert, prefix):
    folder, tensors = bert
    expected = read(folder)[1]
    rewrite(folder, {prefix + name: value for name, value in tensors.items()})
    assert same(read(folder)[1], expected)


def test_a_model_with_a_head(tmp_path):
    """BertForMaskedLM: everything under ``bert.``, and a head under ``cls.`` that an encoder has no use for."""
    model = torch_model("bert", layers=2)
    masked = transformers.BertForMaskedLM(model.config)
    masked.bert.load_state_dict(model.state_dict(), strict=False)
    assert same(read(save_torch(masked, tmp_path / "head"))[1], read(save_torch(model, tmp_path / "bare"))[1])


def test_old_names_of_norms(bert):
    folder, tensors = bert
    expected = read(folder)[1]
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    rewrite(folder, renamed)
    assert same(read(folder)[1], expected)


def test_one_parameter_twice(bert):
    folder, tensors = bert
    name = "embeddings.LayerNorm.bias"
    rewrite(folder, {**tensors, f"bert.{name}": tensors[name].clone()})
    with pytest.raises(UserError, match=f"are both {name}"):
        read(folder)


def test_missing_tensors(bert):
    folder, tensors = bert
    gone = ["embeddings.LayerNorm.bias", "encoder.layer.1.attention.self.key.bias"]
    rewrite(folder, {name: value for name, value in tensors.items() if name not in gone})
    with pytest.raises(UserError, match=r"2 tensors \(" + ", ".join(gone) + r"\) missing"):
        read(folder)


def test_tensors_without_use(bert):
    folder, tensors = bert
    rewrite(folder, {**tensors, "encoder.layer.0.adapter.weight": torch.zeros(3), "extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"2 tensors \(encoder.layer.0.adapter.weight, extra\) unexpected"):
        read(folder)


def test_more_layers_than_the_config_says(bert):
    folder, _ = bert
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(UserError, match=r"16 tensors \(encoder.layer.1.*and 11 more\) unexpected"):
        read(folder)


def test_wrong_shapes_are_listed_with_both_shapes(bert):
    folder, tensors = bert
    tensors["encoder.layer.1.intermediate.dense.weight"] = torch.zeros(7, 32)
    tensors["embeddings.word_embeddings.weight"] = torch.zeros(60, 31)
    rewrite(folder, tensors)
    with pytest.raises(UserError) as raised:
        read(folder)
    message = str(raised.value)
    assert "embeddings.word_embeddings.weight is [60, 31], config.json asks for [60, 32]" in message
    assert "encoder.layer.1.intermediate.dense.weight is [7, 32], config.json asks for [48, 32]" in message
    assert "\n" not in message


def test_integer_weights(bert):
    folder, tensors = bert
    rewrite(folder, {**tensors, "embeddings.LayerNorm.bias": torch.zeros(32, dtype=torch.int64)})
    with pytest.raises(UserError, match=r"embeddings.LayerNorm.bias is I64, not F32, F16 or BF16"):
        read(folder)


def test_position_ids_are_ignored(bert):
    folder, tensors = bert
    expected = read(folder)[1]
    rewrite(folder, {**tensors, "embeddings.position_ids": torch.arange(40)[None]})
    assert same(read(folder)[1], expected)


def test_pickled_weights_are_refused_with_the_way_to_convert(bert):
    folder, tensors = bert
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        read(folder)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin.*never loaded.*save_pretrained") as raised:
        read(folder)
    assert "\n" not in str(raised.value)


def test_placing_leaves(bert):
    """``place`` gets every leaf once, by path, on the host."""
    folder, _ = bert
    encoder, expected = read(folder)
    seen = {}

    def place(path, leaf):
        assert type(leaf) is np.ndarray
        seen[path] = leaf
        return path

    placed = flatten(load_params(folder, encoder, place=place))
    assert placed == {path: path for path in encoder.shapes()}
    assert all(np.array_equal(seen[path], leaf) for path, leaf in flatten(expected).items())


def test_an_export_does_not_mention_where_it_came_from(bert):
    folder, _ = bert
    config = json.loads((folder / "config.json").read_text())
    code = {"_name_or_path": "secret/place", "auto_map": {"AutoModel": "x.Y"}, "attn_implementation": "evil/kernel"}
    config |= {**code, "output_dir": "/home/me/secret", "parts": [code, {"log": "C:\\Users\\me\\secret"}]}
    token = "hf_AbCdEfGhIjKlMnOpQrStUvWx"
    places = ("~/a/secret", "../secret/x", "file:///secret", "s3://bucket/secret", "\\\\host\\secret", "/mnt/a/secret")
    private = [f"https://me:{token}@host/a", "https://host/a?X-Amz-Signature=secret", f"to {token}", *places]
    config |= {"use_auth_token": "secret", "token": True, "api_key": "secret", "private": private}
    config |= {f"private_{number}": value for number, value in enumerate(private)}
    kept = {"page": "https://host/a", "extra_special_tokens": ["/think", "</s>", "~", "..."], "note": "a? b=c"}
    config |= kept
    (folder / "config.json").write_text(json.dumps(config))
    encoder, params = read(folder)
    save(params, encoder, folder / "out")
    exported = json.loads((folder / "out" / "config.json").read_text())
    assert exported["architectures"] == ["BertModel"]
    assert not {*code, "output_dir"} & exported.keys()
    assert exported["parts"] == [{}, {}]
    assert exported["private"] == []
    assert {key: exported[key] for key in kept} == kept
    assert "secret" not in json.dumps(exported)
    assert token not in json.dumps(exported)
    assert encoder_from_folder(folder / "out").config == encoder.config
