"""Configs of the models in the large recipes: enough to check and plan a run without downloading them.

Sizes are those of each model's ``config.json``. Training reads the real folder instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config, family_of

_STELLA_PROMPTS = {
    "s2p_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: ",
    "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
}
_STELLA_DIMS = (256, 768, 1024, 2048, 4096, 6144, 8192)


@dataclass(frozen=True)
class Published:
    config: Mapping[str, Any]
    dims: tuple[int, ...] = ()  # of its 2_Dense_{dim} folders; empty: the pooled vector
    default_dim: int | None = None
    prompts: Mapping[str, str] | None = None
    max_length: int = 512


VISION: dict[str, Mapping[str, Any]] = {
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "image_size": 384,
        "patch_size": 14,
    },
}
"""Vision encoders: their ``config.json``."""

PUBLISHED = {
    "NovaSearch/stella_en_1.5B_v5": Published(
        config={
            "model_type": "qwen2",
            "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"},
            "vocab_size": 151646,
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
        },
        dims=_STELLA_DIMS,
        default_dim=1024,
        prompts=_STELLA_PROMPTS,
    ),
    "NovaSearch/stella_en_400M_v5": Published(
        config={
            "model_type": "new",
            "auto_map": {"AutoModel": "modeling.NewModel"},
            "vocab_size": 30528,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "hidden_act": "gelu",
            "layer_norm_type": "layer_norm",
            "max_position_embeddings": 8192,
            "pad_token_id": 0,
            "position_embedding_type": "rope",
            "rope_scaling": {"type": "ntk", "factor": 2.0},
            "rope_theta": 160000,
            "type_vocab_size": 2,
        },
        dims=_STELLA_DIMS,
        default_dim=1024,
        prompts=_STELLA_PROMPTS,
    ),
    "nvidia/NV-Embed-v2": Published(
        config={
            "model_type": "nvembed",
            "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
            "text_config": {
                "model_type": "bidir_mistral",
                "vocab_size": 32000,
                "hidden_size": 4096,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "intermediate_size": 14336,
                "max_position_embeddings": 32768,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
            },
            "latent_attention_config": {
                "num_latents_value": 512,
                "num_cross_heads": 8,
                "cross_dim_head": 4096,
                "hidden_dim": 4096,
                "latent_dim": 4096,
            },
        },
        max_length=32768,
    ),
}
"""Hub id -> the content of its folder."""


def describe(name: str, causal: bool | None = None) -> ModelFolder | None:
    """The folder of a published model without its weights; None for other models. ``causal`` and UserError as in
    ``read_model_folder``."""
    model = PUBLISHED.get(name)
    if model is None:
        return None
    config = dict(model.config) if causal is None else {**model.config, "is_causal": causal}
    encoder = encoder_from_config(config, name)
    family = family_of(config, name)
    return ModelFolder(
        path=Path(name),
        encoder_path=Path(name),
        hf_config=encoder.hf_config,
        append_eos=family.append_eos,
        pooling=family.pooling(encoder.config),
        outputs=dict.fromkeys(model.dims, ()),
        default_dim=model.default_dim,
        normalize=False,
        prompts=dict(model.prompts or {}),
        default_prompt_name=None,
        max_length=model.max_length,
        lower_case=False,
        described=True,
    )
