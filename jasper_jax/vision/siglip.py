"""SigLIP's vision tower (arXiv 2303.15343), and SigLIP 2's in its fixed-resolution form, which has the same layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.parts import ACTIVATIONS
from jasper_jax.encoders.table import Weight, linear, norm
from jasper_jax.vision.vit import VitConfig, VitEnds, VitLayer, read_sizes


def read_config(hf: Mapping[str, Any], where: str) -> VitConfig:
    """From a ``config.json`` of model_type ``siglip_vision_model``; absent keys take transformers' defaults."""
    read = Reader(hf, "siglip_vision_model", where)
    return VitConfig(
        **read_sizes(read, image_size=224, patch_size=16, hidden_size=768, layers=12),
        intermediate_size=read.integer("intermediate_size", 3072),
        activation=read.choice("hidden_act", tuple(ACTIVATIONS), "gelu_pytorch_tanh"),
        norm_epsilon=read.number("layer_norm_eps", 1e-6),
        init_std=0.02,
    )


def layer_weights(layer: str) -> tuple[Weight, ...]:
    """The layers of SigLIP and CLIP."""
    return (
        *norm(f"{layer}.layer_norm1", "layers/attention_norm"),
        *linear(f"{layer}.self_attn.q_proj", "layers/attention/query"),
        *linear(f"{layer}.self_attn.k_proj", "layers/attention/key"),
        *linear(f"{layer}.self_attn.v_proj", "layers/attention/value"),
        *linear(f"{layer}.self_attn.out_proj", "layers/attention/output"),
        *norm(f"{layer}.layer_norm2", "layers/feed_forward_norm"),
        *linear(f"{layer}.mlp.fc1", "layers/feed_forward/up"),
        *linear(f"{layer}.mlp.fc2", "layers/feed_forward/down"),
    )


def weights(config: VitConfig) -> tuple[Weight, ...]:
    return (
        *linear("embeddings.patch_embedding", "patches"),
        Weight("embeddings.position_embedding.weight", "positions"),
        *norm("post_layernorm", "final_norm"),
        *layer_weights("encoder.layers.{}"),
    )


FAMILY = Family(
    model_type="siglip_vision_model",
    architecture="SiglipVisionModel",
    read_config=read_config,
    ends=VitEnds,
    layer=VitLayer,
    weights=weights,
    prefixes=("vision_model.",),
    ignored=("head.*", "embeddings.position_ids", "text_model.*", "logit_scale", "logit_bias"),
)
