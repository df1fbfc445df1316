"""ModernBERT (arXiv 2412.13663): pre-norm, GeGLU, alternating global and local attention. gte-modernbert, nomic's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout
from jasper_jax.encoders.parts import ACTIVATIONS, Dropout, Embedding, layer_norm
from jasper_jax.encoders.rope import read_rope
from jasper_jax.encoders.rotary import (
    FULL,
    SLIDING,
    GatedFeedForward,
    Kind,
    RotaryAttention,
    RotaryConfig,
    RotaryShared,
    read_layer_types,
)
from jasper_jax.encoders.table import Weight, embedding, joint_linear, linear, norm

_THETA = {FULL: ("global_rope_theta", 160000.0), SLIDING: ("local_rope_theta", 10000.0)}


@dataclass(frozen=True)
class ModernBertConfig(RotaryConfig):
    norm_bias: bool = False

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> ModernBertConfig:
        """From a transformers ``config.json``; absent keys take transformers' defaults."""
        read = Reader(hf, "modernbert", where)
        hidden_size, num_layers = read.integer("hidden_size", 768), read.layers(22)
        num_heads = read.heads(hidden_size, 12)
        max_positions = read.integer("max_position_embeddings", 8192)
        every = read.integer("global_attn_every_n_layers", 3)
        derived = [SLIDING if i % every else FULL for i in range(num_layers)]
        layer_types = read_layer_types(read, num_layers, derived)
        window = read.integer("local_attention", 128) // 2

        def kind(layer_type: str) -> Kind:
            key, default = _THETA[layer_type]
            theta = read.number(key, default)
            rope = read_rope(read, hidden_size // num_heads, max_positions, theta, layer_type=layer_type)
            return Kind(rope, window if layer_type == SLIDING else None)

        return cls(
            vocab_size=read.integer("vocab_size", 50368),
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=hidden_size // num_heads,
            intermediate_size=read.integer("intermediate_size", 1152),
            activation=read.choice("hidden_activation", tuple(ACTIVATIONS), "gelu"),
            max_positions=max_positions,
            norm_epsilon=read.number("norm_eps", 1e-5),
            init_std=read.number("initializer_range", 0.02),
            pad_id=read.padding(50283),
            kinds=tuple(kind(layer_type) for layer_type in dict.fromkeys(layer_types)),
            layer_types=layer_types,
            qkv_bias=read.flag("attention_bias", False),
            output_bias=read.flag("attention_bias", False),
            up_bias=read.flag("mlp_bias", False),
            down_bias=read.flag("mlp_bias", False),
            norm_bias=read.flag("norm_bias", False),
        )


class ModernBertLayer(nnx.Module):
    """x <- x + attention(norm(x)); x <- x + feed_forward(norm(x)); the first layer has no norm before attention."""

    def __init__(self, config: ModernBertConfig, *, dtype: Any, rngs: nnx.Rngs):
        make_norm = _norm(config, dtype, rngs)
        self.attention_norm = make_norm()
        self.attention = RotaryAttention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = make_norm()
        self.feed_forward = GatedFeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, shared: RotaryShared, index: jax.Array, drop: Dropout) -> jax.Array:
        normed = jnp.where(index == 0, x, self.attention_norm(x))
        x = x + drop(self.attention(normed, shared, index), 0)
        return x + drop(self.feed_forward(self.feed_forward_norm(x)), 1)


class ModernBertEnds(nnx.Module):
    """The word embeddings and their norm, and the norm after the last layer."""

    def __init__(self, config: ModernBertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        D, std = config.hidden_size, config.init_std
        self.embeddings = Embedding(config.vocab_size, D, std=std, dtype=dtype, rngs=rngs, padding=config.pad_id)
        self.embeddings_norm = _norm(config, dtype, rngs)()
        self.final_norm = _norm(config, dtype, rngs)()

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, RotaryShared]:
        x = self.embeddings_norm(layout.words(self.embeddings, token_ids))
        return drop(x, 0), RotaryShared.of(self.config, layout)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x)


def _norm(config: ModernBertConfig, dtype: Any, rngs: nnx.Rngs) -> Any:
    return partial(layer_norm, config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs, bias=config.norm_bias)


def modernbert_weights(config: ModernBertConfig) -> tuple[Weight, ...]:
    layer, bias = "layers.{}", config.norm_bias
    attention = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
    return (
        *embedding("embeddings.tok_embeddings", "embeddings"),
        *norm("embeddings.norm", "embeddings_norm", bias=bias),
        *norm("final_norm", "final_norm", bias=bias),
        *norm(f"{layer}.attn_norm", "layers/attention_norm", bias=bias, first_layer=1),
        *joint_linear(f"{layer}.attn.Wqkv", attention, bias=config.qkv_bias),
        *linear(f"{layer}.attn.Wo", "layers/attention/output", bias=config.output_bias),
        *norm(f"{layer}.mlp_norm", "layers/feed_forward_norm", bias=bias),
        *joint_linear(f"{layer}.mlp.Wi", ("layers/feed_forward/gate", "layers/feed_forward/up"), bias=config.up_bias),
        *linear(f"{layer}.mlp.Wo", "layers/feed_forward/down", bias=config.down_bias),
    )


FAMILY = Family(
    model_type="modernbert",
    architecture="ModernBertModel",
    read_config=ModernBertConfig.from_hf,
    ends=ModernBertEnds,
    layer=ModernBertLayer,
    weights=modernbert_weights,
    ignored=("head.*", "decoder.*", "classifier.*", "*.inv_freq"),
)
