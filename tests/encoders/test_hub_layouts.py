"""Checkpoints as they lie on the hub: other names, other words in config.json, parts that transformers lacks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.encoders.weights import load_params, save
from jasper_jax.runtime.errors import UserError
from tests.encoders.hub import NvEmbed, new_tensors, nomic_tensors, write
from tests.encoders.reference import LONGEST, ragged, torch_model, torch_states

SIZES = {"vocab_size": 60, "initializer_range": 0.02}
NEW = {
    "model_type": "new",
    "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
    "hidden_act": "gelu",
    "layer_norm_type": "layer_norm",
    "layer_norm_eps": 1e-12,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_theta": 500.0,
    "rope_scaling": None,
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    **SIZES,
}
NOMIC = {
    "model_type": "nomic_bert",
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "activation_function": "swiglu",
    "causal": False,
    "fused_bias_fc": True,
    "layer_norm_epsilon": 1e-12,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 48,
    "n_layer": 4,
    "n_positions": LONGEST,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_flash_attn": True,
    "use_rms_norm": False,
    **SIZES,
}


@pytest.mark.parametrize("prefix", ["", "new."])
def test_gte_under_its_first_name(tmp_path, prefix):
    model = torch_model("gte", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    tensors = {prefix + name.removeprefix("new."): t for name, t in new_tensors(model).items()}
    check_same(write(tmp_path / "new", NEW, tensors), model, "gte", tmp_path)


def test_gte_with_its_own_scaling_of_rope(tmp_path):
    """``ntk``, which transformers has not: θ·f, and all frequencies over f^(2/d)."""
    model = torch_model("gte")
    factor, width = 2.0, 8
    frequencies = (500.0 * factor) ** (-torch.arange(0, width, 2) / width) / factor ** (2 / width)
    model.rotary_emb.inv_freq.copy_(frequencies)
    config = {**NEW, "rope_scaling": {"type": "ntk", "factor": factor}}
    check_same(write(tmp_path / "new", config, new_tensors(model)), model, "gte", tmp_path)


def test_nomic_bert_in_the_words_of_gpt2(tmp_path):
    model = torch_model("nomic_bert")
    check_same(write(tmp_path / "nomic", NOMIC, nomic_tensors(model)), model, "nomic_bert", tmp_path)


def check_same(folder, model, case, tmp_path):
    """States equal the model's, here and after an export that transformers reads without the hub's code."""
    import transformers

    encoder = encoder_from_folder(folder)
    params = load_params(folder, encoder)
    save(params, encoder, tmp_path / "exported")
    assert "auto_map" not in json.loads((tmp_path / "exported" / "config.json").read_text())
    exported = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
    for side in ("right", "left"):
        ids, mask = ragged(case, side)
        states, expected = np.asarray(encoder.apply(params, ids, mask)), torch_states(model, ids, mask)
        assert np.abs(states - expected)[mask == 1].max() < 1e-5
        assert np.abs(torch_states(exported, ids, mask) - expected)[mask == 1].max() < 1e-5


def test_nv_embed(tmp_path):
    reference = NvEmbed()
    folder = reference.save(tmp_path)
    encoder = encoder_from_folder(folder)
    params = load_params(folder, encoder)
    prompts = np.array([3, 0, 1, 2, 0, 0])
    for side in ("right", "left"):
        ids, mask = ragged("mistral", side)
        with torch.inference_mode():
            expected = reference.states(torch.tensor(ids), torch.tensor(mask)).numpy()
        states = np.asarray(encoder.apply(params, ids, mask))
        assert np.abs(states - expected)[mask == 1].max() < 1e-5
        assert np.abs(expected).max() > 1
        kept = mask.copy()
        for row, n in enumerate(prompts):
            kept[row, np.flatnonzero(mask[row])[:n]] = 0
        with np.errstate(invalid="ignore"):
            mean = (expected * kept[:, :, None]).sum(1) / np.maximum(kept.sum(1), 1)[:, None]
        pooling = read_model_folder(folder).pooling
        assert pooling == Pooling(("mean",), include_prompt=False)
        np.testing.assert_allclose(pooling(states, mask, prompts), mean, atol=1e-5)


def test_nv_embed_is_a_teacher_only(tmp_path):
    folder = NvEmbed().save(tmp_path / "nv")
    encoder = encoder_from_folder(folder)
    with pytest.raises(UserError, match="transformers has no class"):
        save(load_params(folder, encoder), encoder, tmp_path / "out")
    assert read_model_folder(folder).append_eos


def test_causal_by_hand(tmp_path):
    """A folder with code of its own says through ``causal`` what its code would do."""
    folder = torch_model("qwen2-causal")
    config = {**folder.config.to_dict(), "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}
    path = write(tmp_path / "stella", config, folder.state_dict())
    with pytest.raises(UserError, match="set causal to true or false.*or add is_causal to this file"):
        read_model_folder(path)
    described = write(tmp_path / "described", {**config, "is_causal": False}, {})
    assert read_model_folder(described).hf_config["is_causal"] is False
    assert read_model_folder(path, causal=False).pooling == Pooling(("mean",))
    assert read_model_folder(path, causal=False).hf_config["is_causal"] is False
    assert read_model_folder(path, causal=True).pooling == Pooling(("lasttoken",))
    bert = write(tmp_path / "bert", {"model_type": "bert"}, {})
    with pytest.raises(UserError, match="bert encoders are bidirectional"):
        read_model_folder(bert, causal=False)
