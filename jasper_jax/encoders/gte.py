"""GTE v1.5 ("new" on the hub): BERT's post-norm layers with RoPE and a gated feed-forward. stella_en_400M_v5,
gte-en-v1.5, gte-multilingual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout
from jasper_jax.encoders.parts import ACTIVATIONS, Dropout, Embedding, layer_norm
from jasper_jax.encoders.rope import as_linear, read_rope
from jasper_jax.encoders.rotary import FULL, GatedFeedForward, Kind, RotaryAttention, RotaryConfig, RotaryShared
from jasper_jax.encoders.table import Weight, embedding, joint_linear, linear, norm

ATTENTION = ("layers/attention/query", "layers/attention/key", "layers/attention/value")


@dataclass(frozen=True)
class GteConfig(RotaryConfig):
    """``type_vocab_size`` may be 0: no token types."""

    type_vocab_size: int = 0

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> GteConfig:
        """From a transformers ``config.json``; absent keys take transformers' defaults."""
        read = Reader(hf, "gte", where)
        return read_post_norm(
            cls,
            read,
            vocab_size=250048,
            max_positions=8192,
            theta=160000.0,
            activation="gelu",
            padding=1,
            biases={"qkv_bias": True, "output_bias": True, "up_bias": False, "down_bias": True},
            type_vocab_size=read.integer("type_vocab_size", 1, least=0),
        )


def read_post_norm(
    kind: type, read: Reader, *, vocab_size, max_positions, theta, activation, padding, biases, type_vocab_size
) -> Any:
    """A config of gte or nomic_bert, with the family's defaults for absent keys."""
    hidden_size = read.integer("hidden_size", 768)
    num_heads, num_layers = read.heads(hidden_size, 12), read.layers(12)
    head_dim = read.optional("head_dim", None) or hidden_size // num_heads
    max_positions = read.integer("max_position_embeddings", max_positions)
    return kind(
        vocab_size=read.integer("vocab_size", vocab_size),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=read.integer("intermediate_size", 3072),
        activation=read.choice("hidden_act", tuple(ACTIVATIONS), activation),
        max_positions=max_positions,
        norm_epsilon=read.number("layer_norm_eps", 1e-12),
        init_std=read.number("initializer_range", 0.02),
        pad_id=read.padding(padding),
        kinds=(Kind(read_rope(read, head_dim, max_positions, theta)),),
        layer_types=(FULL,) * num_layers,
        type_vocab_size=type_vocab_size,
        **biases,
    )


class RotaryPostNormLayer(nnx.Module):
    """x <- norm(x + attention(x)); x <- norm(x + feed_forward(x)). Nomic BERT has the same layer, without biases."""

    def __init__(self, config: GteConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.attention = RotaryAttention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.feed_forward = GatedFeedForward(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, shared: RotaryShared, index: jax.Array, drop: Dropout) -> jax.Array:
        x = self.attention_norm(x + drop(self.attention(x, shared, index), 0))
        return self.feed_forward_norm(x + drop(self.feed_forward(x), 1))


class RotaryEmbeddings(nnx.Module):
    """word + token type 0, then a norm; positions are in the attention."""

    def __init__(self, config: GteConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, std = config.hidden_size, config.init_std
        self.word = Embedding(config.vocab_size, D, std=std, dtype=dtype, rngs=rngs, padding=config.pad_id)
        self.has_types = config.type_vocab_size > 0
        if self.has_types:
            self.token_type = Embedding(config.type_vocab_size, D, std=std, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        x = layout.words(self.word, token_ids)
        return self.norm(x + self.token_type(jnp.zeros((), jnp.int32)) if self.has_types else x)


class RotaryPostNormEnds(nnx.Module):
    def __init__(self, config: GteConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = RotaryEmbeddings(config, dtype=dtype, rngs=rngs)

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, RotaryShared]:
        return drop(self.embeddings(token_ids, layout), 0), RotaryShared.of(self.config, layout)

    def finish(self, x: jax.Array) -> jax.Array:
        return x


def embedding_weights(config: GteConfig, norm_name: str = "embeddings.LayerNorm") -> tuple[Weight, ...]:
    types = embedding("embeddings.token_type_embeddings", "embeddings/token_type") if config.type_vocab_size else ()
    return (
        *embedding("embeddings.word_embeddings", "embeddings/word"),
        *types,
        *norm(norm_name, "embeddings/norm"),
    )


def post_norm_weights(config: GteConfig) -> tuple[Weight, ...]:
    """transformers' names."""
    layer = "layers.{}"
    projections = zip("qkv", ATTENTION, strict=True)
    return (
        *embedding_weights(config),
        *(w for x, path in projections for w in linear(f"{layer}.self_attn.{x}_proj", path, bias=config.qkv_bias)),
        *linear(f"{layer}.self_attn.o_proj", "layers/attention/output", bias=config.output_bias),
        *norm(f"{layer}.post_attention_layernorm", "layers/attention_norm"),
        *linear(f"{layer}.mlp.gate_proj", "layers/feed_forward/gate", bias=config.up_bias),
        *linear(f"{layer}.mlp.up_proj", "layers/feed_forward/up", bias=config.up_bias),
        *linear(f"{layer}.mlp.down_proj", "layers/feed_forward/down", bias=config.down_bias),
        *norm(f"{layer}.post_mlp_layernorm", "layers/feed_forward_norm"),
    )


def hub_weights(config: GteConfig) -> tuple[Weight, ...]:
    """The names of the ``new`` checkpoints: query, key and value in one tensor, up and gate in one."""
    layer = "encoder.layer.{}"
    return (
        *embedding_weights(config),
        *joint_linear(f"{layer}.attention.qkv_proj", ATTENTION, bias=config.qkv_bias),
        *linear(f"{layer}.attention.o_proj", "layers/attention/output", bias=config.output_bias),
        *norm(f"{layer}.attn_ln", "layers/attention_norm"),
        *joint_linear(f"{layer}.mlp.up_gate_proj", ("layers/feed_forward/up", "layers/feed_forward/gate"), bias=False),
        *linear(f"{layer}.mlp.down_proj", "layers/feed_forward/down", bias=config.down_bias),
        *norm(f"{layer}.mlp_ln", "layers/feed_forward_norm"),
    )


_IRRELEVANT = ("logn_attention_clip1", "pack_qkv", "unpad_inputs", "use_memory_efficient_attention", "rope_theta")


def translate(hf: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config of model_type ``new`` as transformers' ``gte``."""
    if hf.get("model_type") != "new":
        return dict(hf)
    read = Reader(hf, "gte", where)
    read.require("position_embedding_type", "rope")
    read.require("layer_norm_type", "layer_norm")
    read.require("logn_attention_scale", False)
    theta, scaling = read.number("rope_theta", 10000.0), hf.get("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(scaling, Mapping) and scaling.get("type") == "ntk":
        inner = Reader(scaling, "gte", f"{where}: rope_scaling")
        inner.choice("mixed_b", (None,), None)
        head_dim = read.integer("hidden_size", 768) // read.integer("num_attention_heads", 12)
        rope = as_linear(theta, inner.needed("factor"), head_dim)
    elif scaling is not None:
        rope = {**scaling, "rope_theta": theta}
    dropped = (*_IRRELEVANT, "rope_scaling", "position_embedding_type", "layer_norm_type", "logn_attention_scale")
    kept = {key: value for key, value in hf.items() if key not in dropped}
    return {"type_vocab_size": 0, "pad_token_id": 0, **kept, "model_type": "gte", "rope_parameters": rope}


FAMILY = Family(
    model_type="gte",
    architecture="GteModel",
    read_config=GteConfig.from_hf,
    ends=RotaryPostNormEnds,
    layer=RotaryPostNormLayer,
    weights=post_norm_weights,
    older=(hub_weights,),
    translate=translate,
    prefixes=("new.", "gte."),
    ignored=("pooler.*", "lm_head.*", "classifier.*", "rotary_emb.*", "embeddings.rotary_emb.*", "*.inv_freq"),
)
