"""Nomic BERT (arXiv 2402.01613): the layers of ``gte`` without biases, SwiGLU. nomic-embed-text v1 and v1.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.gte import (
    ATTENTION,
    GteConfig,
    RotaryPostNormEnds,
    RotaryPostNormLayer,
    embedding_weights,
    post_norm_weights,
    read_post_norm,
)
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.table import Weight, joint_linear, linear, norm

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu"}
_RENAMED = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
}
_ONLY = {
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "prenorm": False,
    "parallel_block": False,
    "causal": False,
    "use_rms_norm": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
}
"""Settings of the hub's own code, with the one value that is implemented; ``_HUB_DEFAULTS`` has its defaults."""
_HUB_DEFAULTS = {"rotary_emb_fraction": 0.0, "qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True}


def from_hf(hf: Mapping[str, Any], where: str = "config.json") -> GteConfig:
    """From a transformers ``config.json``; absent keys take transformers' defaults."""
    read = Reader(hf, "nomic_bert", where)
    return read_post_norm(
        GteConfig,
        read,
        vocab_size=30528,
        max_positions=2048,
        theta=1000.0,
        activation="silu",
        padding=0,
        biases={"qkv_bias": False, "output_bias": False, "up_bias": False, "down_bias": False},
        type_vocab_size=read.integer("type_vocab_size", 2),
    )


def translate(hf: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The hub's config (GPT-2's keys) as transformers'."""
    if "n_embd" not in hf:
        return dict(hf)
    read = Reader({**_HUB_DEFAULTS, **hf}, "nomic_bert", where)
    for key, value in _ONLY.items():
        read.require(key, value)
    for key in ("rotary_emb_scale_base", "rotary_scaling_factor", "num_experts", "moe_every_n_layers"):
        read.choice(key, (None, 0), None)
    activation = read.choice("activation_function", tuple(_ACTIVATIONS), "gelu")
    dropped = {*_ONLY, *_RENAMED.values(), "activation_function", "rotary_emb_base", "rotary_emb_scale_base"}
    dropped |= {key for key in hf if key.startswith(("use_", "fused_", "resid_", "summary_", "scale_attn", "reorder_"))}
    names = {new: hf[old] for new, old in _RENAMED.items() if hf.get(old) is not None}
    rope = {"rope_type": "default", "rope_theta": read.number("rotary_emb_base", 1000.0)}
    kept = {key: value for key, value in hf.items() if key not in dropped}
    return {**kept, **names, "hidden_act": _ACTIVATIONS[activation], "rope_parameters": rope}


def hub_weights(config: GteConfig) -> tuple[Weight, ...]:
    """The names of the hub's checkpoints."""
    layer = "encoder.layers.{}"
    return (
        *embedding_weights(config, "emb_ln"),
        *joint_linear(f"{layer}.attn.Wqkv", ATTENTION, bias=False),
        *linear(f"{layer}.attn.out_proj", "layers/attention/output", bias=False),
        *norm(f"{layer}.norm1", "layers/attention_norm"),
        *linear(f"{layer}.mlp.fc11", "layers/feed_forward/up", bias=False),
        *linear(f"{layer}.mlp.fc12", "layers/feed_forward/gate", bias=False),
        *linear(f"{layer}.mlp.fc2", "layers/feed_forward/down", bias=False),
        *norm(f"{layer}.norm2", "layers/feed_forward_norm"),
    )


FAMILY = Family(
    model_type="nomic_bert",
    architecture="NomicBertModel",
    read_config=from_hf,
    ends=RotaryPostNormEnds,
    layer=RotaryPostNormLayer,
    weights=post_norm_weights,
    older=(hub_weights,),
    translate=translate,
    prefixes=("nomic_bert.", "bert."),
    ignored=("pooler.*", "cls.*", "*.inv_freq", "embeddings.position_ids", "embeddings.token_type_ids"),
)
