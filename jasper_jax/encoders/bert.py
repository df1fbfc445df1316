"""BERT: learned absolute positions, token types, post-norm layers (arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.attention import attend
from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout, Seen
from jasper_jax.encoders.parts import ACTIVATIONS, Dropout, Embedding, dense, layer_norm
from jasper_jax.encoders.table import Weight, embedding, linear, norm


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    max_positions: int
    type_vocab_size: int
    norm_epsilon: float
    init_std: float
    pad_id: int

    @classmethod
    def from_hf(
        cls,
        hf: Mapping[str, Any],
        where: str = "config.json",
        *,
        family: str = "bert",
        vocab_size: int = 30522,
        pad_id: int = 0,
    ) -> BertConfig:
        """From a transformers ``config.json``; absent keys take transformers' defaults."""
        read = Reader(hf, family, where)
        read.require("position_embedding_type", "absolute")
        read.require("is_decoder", False)
        read.require("add_cross_attention", False)
        hidden_size = read.integer("hidden_size", 768)
        return cls(
            vocab_size=read.integer("vocab_size", vocab_size),
            hidden_size=hidden_size,
            num_layers=read.layers(12),
            num_heads=read.heads(hidden_size, 12),
            intermediate_size=read.integer("intermediate_size", 3072),
            activation=read.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
            max_positions=read.integer("max_position_embeddings", 512),
            type_vocab_size=read.integer("type_vocab_size", 2),
            norm_epsilon=read.number("layer_norm_eps", 1e-12),
            init_std=read.number("initializer_range", 0.02),
            pad_id=read.integer("pad_token_id", pad_id, least=0),
        )


class Shared(NamedTuple):
    """What every layer reads; ``bias`` is [1, H, L, L] or None."""

    seen: Seen | None = None
    bias: jax.Array | None = None


class SelfAttention(nnx.Module):
    """Query, key, value and output maps; D -> D."""

    def __init__(self, config: Any, *, dtype: Any, rngs: nnx.Rngs, qkv_bias: bool = True):
        D, made = config.hidden_size, {"std": config.init_std, "dtype": dtype, "rngs": rngs}
        self.num_heads = config.num_heads
        self.query = dense(D, D, bias=qkv_bias, **made)
        self.key = dense(D, D, bias=qkv_bias, **made)
        self.value = dense(D, D, bias=qkv_bias, **made)
        self.output = dense(D, D, **made)

    def __call__(self, x: jax.Array, shared: Shared = Shared()) -> jax.Array:  # noqa: B008  immutable
        B, L, D = x.shape
        split = (B, L, self.num_heads, D // self.num_heads)
        q, k, v = self.query(x).reshape(split), self.key(x).reshape(split), self.value(x).reshape(split)
        return self.output(attend(q, k, v, seen=shared.seen, bias=shared.bias).reshape(B, L, D))


class FeedForward(nnx.Module):
    """D -> F -> D with one activation between."""

    def __init__(self, config: Any, *, dtype: Any, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.activation = config.activation
        self.up = dense(D, F, std=config.init_std, dtype=dtype, rngs=rngs)
        self.down = dense(F, D, std=config.init_std, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class PostNormLayer(nnx.Module):
    """x <- norm(x + attention(x)); x <- norm(x + feed_forward(x)). MPNet and the RoBERTas have the same layer."""

    def __init__(self, config: Any, *, dtype: Any, rngs: nnx.Rngs):
        self.attention = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.attention_norm = layer_norm(config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, shared: Shared, index: jax.Array, drop: Dropout) -> jax.Array:
        x = self.attention_norm(x + drop(self.attention(x, shared), 0))
        return self.feed_forward_norm(x + drop(self.feed_forward(x), 1))


class BertEmbeddings(nnx.Module):
    """word + token type 0 + position, then a norm."""

    def __init__(self, config: BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, std = config.hidden_size, config.init_std
        self.word = Embedding(config.vocab_size, D, std=std, dtype=dtype, rngs=rngs, padding=config.pad_id)
        self.position = Embedding(config.max_positions, D, std=std, dtype=dtype, rngs=rngs)
        self.token_type = Embedding(config.type_vocab_size, D, std=std, dtype=dtype, rngs=rngs)
        self.norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        x = layout.words(self.word, token_ids) + self.token_type(jnp.zeros((), jnp.int32))
        return self.norm(x + self.position(self.positions(token_ids, layout)))

    def positions(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        """Row of the position table for each token."""
        return layout.columns


class BertEnds(nnx.Module):
    make_embeddings = BertEmbeddings

    def __init__(self, config: BertConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = self.make_embeddings(config, dtype=dtype, rngs=rngs)

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, Shared]:
        return drop(self.embeddings(token_ids, layout), 0), Shared(Seen.of(layout))

    def finish(self, x: jax.Array) -> jax.Array:
        return x


def bert_weights(config: BertConfig) -> tuple[Weight, ...]:
    layer = "encoder.layer.{}"
    return (
        *embedding("embeddings.word_embeddings", "embeddings/word"),
        *embedding("embeddings.position_embeddings", "embeddings/position"),
        *embedding("embeddings.token_type_embeddings", "embeddings/token_type"),
        *norm("embeddings.LayerNorm", "embeddings/norm"),
        *linear(f"{layer}.attention.self.query", "layers/attention/query"),
        *linear(f"{layer}.attention.self.key", "layers/attention/key"),
        *linear(f"{layer}.attention.self.value", "layers/attention/value"),
        *linear(f"{layer}.attention.output.dense", "layers/attention/output"),
        *norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *linear(f"{layer}.intermediate.dense", "layers/feed_forward/up"),
        *linear(f"{layer}.output.dense", "layers/feed_forward/down"),
        *norm(f"{layer}.output.LayerNorm", "layers/feed_forward_norm"),
    )


FAMILY = Family(
    model_type="bert",
    architecture="BertModel",
    read_config=BertConfig.from_hf,
    ends=BertEnds,
    layer=PostNormLayer,
    weights=bert_weights,
    prefixes=("bert.",),
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "cls.*"),
    renamed=((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")),
)
