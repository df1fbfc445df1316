"""CLIP's vision tower (arXiv 2103.00020). Its states are those before the last norm, which only the class token has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.parts import ACTIVATIONS
from jasper_jax.encoders.table import Weight, linear, norm
from jasper_jax.vision.siglip import layer_weights
from jasper_jax.vision.vit import VitConfig, VitEnds, VitLayer, read_sizes


def read_config(hf: Mapping[str, Any], where: str) -> VitConfig:
    """From a ``config.json`` of model_type ``clip_vision_model``; absent keys take transformers' defaults."""
    read = Reader(hf, "clip_vision_model", where)
    sizes = read_sizes(read, image_size=224, patch_size=32, hidden_size=768, layers=12)
    return VitConfig(
        **sizes,
        intermediate_size=read.integer("intermediate_size", 3072),
        activation=read.choice("hidden_act", tuple(ACTIVATIONS), "quick_gelu"),
        norm_epsilon=read.number("layer_norm_eps", 1e-5),
        init_std=read.number("initializer_range", 0.02),
        class_shape=(sizes["hidden_size"],),
        patch_bias=False,
        first_norm=True,
        final_norm=False,
    )


def weights(config: VitConfig) -> tuple[Weight, ...]:
    return (
        *linear("embeddings.patch_embedding", "patches", bias=False),
        Weight("embeddings.class_embedding", "class_token"),
        Weight("embeddings.position_embedding.weight", "positions"),
        *norm("pre_layrnorm", "first_norm"),
        *layer_weights("encoder.layers.{}"),
    )


FAMILY = Family(
    model_type="clip_vision_model",
    architecture="CLIPVisionModel",
    read_config=read_config,
    ends=VitEnds,
    layer=VitLayer,
    weights=weights,
    prefixes=("vision_model.",),
    ignored=(
        "post_layernorm.*",
        "embeddings.position_ids",
        "text_model.*",
        "visual_projection.*",
        "text_projection.*",
        "logit_scale",
    ),
)
