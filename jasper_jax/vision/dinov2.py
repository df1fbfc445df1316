"""DINOv2 (arXiv 2304.07193): a class token, layer scale, a norm after the last layer. Trained without text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.parts import ACTIVATIONS
from jasper_jax.encoders.table import Weight, linear, norm
from jasper_jax.vision.vit import VitConfig, VitEnds, VitLayer, read_sizes


def read_config(hf: Mapping[str, Any], where: str) -> VitConfig:
    """From a ``config.json`` of model_type ``dinov2``; absent keys take transformers' defaults."""
    read = Reader(hf, "dinov2", where)
    read.require("use_swiglu_ffn", False)
    sizes = read_sizes(read, image_size=224, patch_size=14, hidden_size=768, layers=12)
    D = sizes["hidden_size"]
    return VitConfig(
        **sizes,
        intermediate_size=int(D * read.number("mlp_ratio", 4)),
        activation=read.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
        norm_epsilon=read.number("layer_norm_eps", 1e-6),
        init_std=read.number("initializer_range", 0.02),
        class_shape=(1, 1, D),
        table_lead=(1,),
        qkv_bias=read.flag("qkv_bias", True),
        layer_scale=read.number("layerscale_value", 1.0),
    )


def weights(config: VitConfig) -> tuple[Weight, ...]:
    layer, attention = "encoder.layer.{}", "encoder.layer.{}.attention"
    return (
        *linear("embeddings.patch_embeddings.projection", "patches"),
        Weight("embeddings.cls_token", "class_token"),
        Weight("embeddings.position_embeddings", "positions"),
        *norm("layernorm", "final_norm"),
        *norm(f"{layer}.norm1", "layers/attention_norm"),
        *linear(f"{attention}.attention.query", "layers/attention/query", bias=config.qkv_bias),
        *linear(f"{attention}.attention.key", "layers/attention/key", bias=config.qkv_bias),
        *linear(f"{attention}.attention.value", "layers/attention/value", bias=config.qkv_bias),
        *linear(f"{attention}.output.dense", "layers/attention/output"),
        Weight(f"{layer}.layer_scale1.lambda1", "layers/attention_scale/scale"),
        *norm(f"{layer}.norm2", "layers/feed_forward_norm"),
        *linear(f"{layer}.mlp.fc1", "layers/feed_forward/up"),
        *linear(f"{layer}.mlp.fc2", "layers/feed_forward/down"),
        Weight(f"{layer}.layer_scale2.lambda1", "layers/feed_forward_scale/scale"),
    )


FAMILY = Family(
    model_type="dinov2",
    architecture="Dinov2Model",
    read_config=read_config,
    ends=VitEnds,
    layer=VitLayer,
    weights=weights,
    prefixes=("dinov2.",),
    ignored=("embeddings.mask_token", "classifier.*"),
)
