"""NV-Embed-v2 (arXiv 2405.17428): bidirectional Mistral, latent attention over every token, mean without the
instruction's tokens. A teacher only: transformers has no class to export to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.attention import attend
from jasper_jax.encoders.decoder import (
    MISTRAL_DEFAULTS,
    DecoderConfig,
    DecoderEnds,
    PreNormLayer,
    decoder_weights,
    read_decoder,
)
from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.parts import dense, gelu, layer_norm
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.table import Weight, joint_linear, linear, norm
from jasper_jax.runtime.errors import UserError

_FACTOR = 4  # of the feed-forward's width, fixed by NVIDIA's code
_EPSILON = 1e-5  # torch's default


@dataclass(frozen=True)
class NvEmbedConfig(DecoderConfig):
    """``latents`` learned vectors of the states' width, attended to by ``cross_heads`` heads of ``cross_head_dim``."""

    latents: int = 512
    cross_heads: int = 8
    cross_head_dim: int = 4096

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> NvEmbedConfig:
        """From the hub's ``config.json``: ``text_config`` (Mistral's) and ``latent_attention_config``."""
        text, latent = hf.get("text_config"), hf.get("latent_attention_config")
        if not isinstance(text, Mapping) or not isinstance(latent, Mapping):
            raise UserError(f"{where}: expected the objects text_config and latent_attention_config")
        # Its attention sees everything, whatever window Mistral's config names.
        text = {**text, "is_causal": False, "sliding_window": None}
        decoder = read_decoder(text, "mistral", MISTRAL_DEFAULTS, f"{where}: text_config")
        read = Reader(latent, "nvembed", f"{where}: latent_attention_config")
        width = decoder.hidden_size
        for key in ("hidden_dim", "latent_dim"):
            read.choice(key, (width,), width)
        Reader(hf, "nvembed", where).choice("mask_type", ("b",), "b")
        return cls(
            **{field.name: getattr(decoder, field.name) for field in fields(DecoderConfig)},
            latents=read.integer("num_latents_value", 512),
            cross_heads=read.integer("num_cross_heads", 8),
            cross_head_dim=read.integer("cross_dim_head", width),
        )


class LatentAttention(nnx.Module):
    """x <- x + attention(norm(x), norm(latents)); x <- x + feed_forward(norm(x)), token by token."""

    def __init__(self, config: NvEmbedConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, H, d = config.hidden_size, config.cross_heads, config.cross_head_dim
        made = {"std": config.init_std, "dtype": dtype, "rngs": rngs}
        self.shape = (H, d)
        self.dtype = dtype
        self.latents = nnx.Param(jax.random.normal(rngs.params(), (config.latents, D), jnp.float32))
        self.norm = layer_norm(D, _EPSILON, dtype=dtype, rngs=rngs)
        self.context_norm = layer_norm(D, _EPSILON, dtype=dtype, rngs=rngs)
        self.query = dense(D, H * d, bias=False, **made)
        self.key = dense(D, H * d, bias=False, **made)
        self.value = dense(D, H * d, bias=False, **made)
        self.output = dense(H * d, D, bias=False, **made)
        self.feed_forward_norm = layer_norm(D, _EPSILON, dtype=dtype, rngs=rngs)
        self.up = dense(D, _FACTOR * D, **made)
        self.gate = dense(D, _FACTOR * D, **made)
        self.down = dense(_FACTOR * D, D, **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        B, L, _ = x.shape
        latents = self.context_norm(self.latents[...].astype(self.dtype))
        q = self.query(self.norm(x)).reshape(1, B * L, *self.shape)  # one query per token
        k = self.key(latents).reshape(1, -1, *self.shape)
        v = self.value(latents).reshape(1, -1, *self.shape)
        x = x + self.output(attend(q, k, v).reshape(B, L, -1))
        h = self.feed_forward_norm(x)
        return x + self.down(self.up(h) * gelu(self.gate(h)))


class NvEmbedEnds(DecoderEnds):
    def __init__(self, config: NvEmbedConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.latent_attention = LatentAttention(config, dtype=dtype, rngs=rngs)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.latent_attention(self.final_norm(x))


def nvembed_weights(config: NvEmbedConfig) -> tuple[Weight, ...]:
    model, here = "latent_attention_model", "latent_attention"
    attention, feed_forward = f"{model}.cross_attend_blocks.0", f"{model}.cross_attend_blocks.1"
    return (
        *decoder_weights(config),
        Weight(f"{model}.latents", f"{here}/latents"),
        *norm(f"{attention}.norm", f"{here}/norm"),
        *norm(f"{attention}.norm_context", f"{here}/context_norm"),
        *linear(f"{attention}.fn.to_q", f"{here}/query", bias=False),
        *joint_linear(f"{attention}.fn.to_kv", (f"{here}/key", f"{here}/value"), bias=False),
        *linear(f"{attention}.fn.to_out", f"{here}/output", bias=False),
        *norm(f"{feed_forward}.norm", f"{here}/feed_forward_norm"),
        *joint_linear(f"{feed_forward}.fn.net.0", (f"{here}/up", f"{here}/gate")),
        *linear(f"{feed_forward}.fn.net.2", f"{here}/down"),
    )


FAMILY = Family(
    model_type="nvembed",
    architecture=None,
    read_config=NvEmbedConfig.from_hf,
    ends=NvEmbedEnds,
    layer=PreNormLayer,
    weights=nvembed_weights,
    prefixes=("embedding_model.",),
    ignored=("lm_head.weight", "*.rotary_emb.inv_freq"),
    pooling=lambda config: Pooling(("mean",), include_prompt=False),
    append_eos=True,
)
