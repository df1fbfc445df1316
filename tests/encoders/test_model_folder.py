"""Model folders of every age: what is read from them, and which are refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Pooling as TorchPooling

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.pooling import MODES, Pooling
from jasper_jax.runtime.errors import UserError
from tests.st_folders import DIM, linear, write_dense_folder, write_sentence_transformer, write_transformer

OLD = "sentence_transformers.models"
MODULES = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path, **changes):
    write_json(path, {**json.loads(path.read_text()), **changes})


def write_modules(folder, steps):
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": kind if "." in kind else f"{OLD}.{kind}"}
            for i, (path, kind) in enumerate(steps)
        ],
    )


@pytest.fixture
def old(tmp_path):
    """A folder as sentence-transformers 2 to 4 wrote it."""
    folder = write_transformer("bert", tmp_path / "old")
    write_modules(folder, MODULES)
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": DIM, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    )
    write_dense_folder(folder / "2_Dense", DIM, 8)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
    prompts = {"query": "q: ", "passage": ""}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})
    return folder


def test_an_old_folder(old):
    model = read_model_folder(old)
    assert model.encoder_path == old
    assert model.hf_config["model_type"] == "bert"
    assert model.pooling == Pooling(("mean",))
    assert (model.default_dim, list(model.outputs), model.normalize) == (8, [8], True)
    assert (model.max_length, model.lower_case) == (20, True)
    assert model.prompts == {"query": "q: ", "passage": ""}
    assert model.default_prompt_name == "query"
    kernel, bias, activation = model.outputs[8][0]
    stored = load_file(old / "2_Dense" / "model.safetensors")
    np.testing.assert_array_equal(kernel, stored["linear.weight"].T)
    np.testing.assert_array_equal(bias, stored["linear.bias"])
    assert activation == "identity"


def test_a_new_folder(tmp_path):
    """As version 6 writes it: other module paths, other key names, the length with the tokenizer."""
    write_sentence_transformer(
        "bert",
        tmp_path / "new",
        pooling=TorchPooling(DIM, ("cls", "lasttoken")),
        dense=[linear(2 * DIM, 8, torch.nn.Tanh(), bias=False), linear(8, 5, torch.nn.GELU())],
        prompts={"query": "q: "},
        normalize=False,
    )
    model = read_model_folder(tmp_path / "new")
    assert model.pooling == Pooling(("cls", "lasttoken"))
    assert [(step.kernel.shape, step.bias is None, step.activation) for step in model.outputs[5]] == [
        ((2 * DIM, 8), True, "tanh"),
        ((8, 5), False, "gelu"),
    ]
    assert (model.default_dim, model.normalize, model.max_length) == (5, False, None)
    assert model.prompts["query"] == "q: "


def test_a_plain_folder(tmp_path):
    model = read_model_folder(write_transformer("mpnet", tmp_path / "plain"))
    assert (model.pooling, model.outputs, model.default_dim) == (Pooling(), {}, None)
    assert (model.normalize, model.prompts, model.max_length, model.lower_case) == (False, {}, None, False)


def test_the_encoder_in_a_folder_of_its_own(old):
    """Version 1 and 2 put the Transformer into ``0_Transformer``."""
    inner = old / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        shutil.move(old / name, inner / name)
    write_modules(old, [("0_Transformer", "Transformer"), *MODULES[1:]])
    model = read_model_folder(old)
    assert model.encoder_path == inner
    assert model.max_length == 20


def test_settings_named_after_another_architecture(old):
    shutil.move(old / "sentence_bert_config.json", old / "sentence_roberta_config.json")
    assert read_model_folder(old).max_length == 20


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling_mode_in_both_spellings(old, mode):
    key = {"cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}.get(mode)
    key = key or f"pooling_mode_{mode}{'' if mode.endswith('tokens') else '_tokens'}"
    file = old / "1_Pooling" / "config.json"
    write_json(file, {"word_embedding_dimension": DIM, key: True, "include_prompt": False})
    assert read_model_folder(old).pooling == Pooling((mode,), include_prompt=False)
    write_json(file, {"embedding_dimension": DIM, "pooling_mode": mode})
    assert read_model_folder(old).pooling == Pooling((mode,))


def test_stella_layout(old):
    for dim in (64, 4):
        write_dense_folder(old / f"2_Dense_{dim}", DIM, dim, seed=dim)
    model = read_model_folder(old)
    assert list(model.outputs) == [8, 4, 64]
    assert model.default_dim == 8
    np.testing.assert_array_equal(
        model.outputs[64][0].kernel, load_file(old / "2_Dense_64" / "model.safetensors")["linear.weight"].T
    )


def spoil_modules(*steps):
    return lambda folder: write_modules(folder, steps)


def spoil_json(name, **changes):
    return lambda folder: change_json(folder / name, **changes)


def spoil_dense_tensor(folder):
    file = folder / "2_Dense" / "model.safetensors"
    save_file({**load_file(file), "residual.weight": np.zeros((8, DIM), np.float32)}, file)


def pickle_dense(folder):
    shutil.move(folder / "2_Dense" / "model.safetensors", folder / "2_Dense" / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_modules(*MODULES[:2], ("2_LSTM", "LSTM")), r"modules.json: module .*LSTM \(2_LSTM\).*Transformer, Pool"),
        (spoil_modules(*MODULES[:2], ("2", "custom.Dense")), "module custom.Dense .*never run"),
        (spoil_modules(MODULES[0], MODULES[3]), "begins with.*expected Transformer, Pooling"),
        (spoil_modules(*MODULES[:2], MODULES[3], MODULES[2]), r"Dense \(2_Dense\) is out of order"),
        (spoil_modules(*MODULES[:2], MODULES[1]), r"Pooling \(1_Pooling\) is out of order"),
        (lambda folder: write_json(folder / "modules.json", {"a": 1}), "expected a list of modules"),
        (lambda folder: (folder / "modules.json").write_text("["), "modules.json: not valid JSON"),
        (spoil_json("1_Pooling/config.json", pooling_mode="median"), "pooling mode 'median'.*cls, max, mean"),
        (spoil_json("1_Pooling/config.json", pooling_mode_latent=True), "'pooling_mode_latent' is not implemented"),
        (spoil_json("1_Pooling/config.json", word_embedding_dimension=31), "expects 32 dimensions, got 31"),
        (spoil_json("2_Dense/config.json", activation_function="my.Code"), "activation_function 'my.Code'.*Tanh"),
        (spoil_json("2_Dense/config.json", use_residual=True), "use_residual is True; only False"),
        (spoil_json("2_Dense/config.json", module_input_name="token_embeddings"), "module_input_name is 'token_emb"),
        (
            spoil_json("2_Dense/config.json", out_features=9),
            r"linear.weight is \[8, 32\], config.json asks for \[9, 32\]",
        ),
        (spoil_json("2_Dense/config.json", bias=False), "expected linear.weight, got linear.bias, linear.weight"),
        (spoil_dense_tensor, "expected linear.bias, linear.weight, got .*residual.weight"),
        (pickle_dense, "pytorch_model.bin.*never loaded"),
        (lambda folder: write_dense_folder(folder / "2_Dense_7", DIM, 6), "named for 7 dimensions, .* has 6"),
        (lambda folder: write_dense_folder(folder / "2_Dense_6", 30, 6), "expects 30 dimensions, got 32"),
        (spoil_json("sentence_bert_config.json", max_seq_length="long"), "max_seq_length is 'long'"),
        (spoil_json("sentence_bert_config.json", transformer_task="fill-mask"), "transformer_task is 'fill-mask'"),
        (
            spoil_json("config_sentence_transformers.json", prompts=["q"]),
            r"prompts is \['q'\]; expected an object of name and text",
        ),
        (spoil_json("config_sentence_transformers.json", default_prompt_name="x"), "default_prompt_name is 'x'"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    ],
)
def test_what_is_refused(old, spoil, message):
    read_model_folder(old)
    spoil(old)
    with pytest.raises(UserError, match=message) as raised:
        read_model_folder(old)
    assert str(old) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_dimensions_beside_a_chain_of_two(old):
    write_dense_folder(old / "3_Dense", 8, 6)
    write_dense_folder(old / "2_Dense_4", DIM, 4)
    write_modules(old, [*MODULES[:3], ("3_Dense", "Dense")])
    with pytest.raises(UserError, match="2_Dense_4: stands beside 2 Dense steps"):
        read_model_folder(old)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_model_folder(tmp_path / "nowhere")
