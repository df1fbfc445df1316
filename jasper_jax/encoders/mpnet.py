"""MPNet: BERT's layers, positions counted from the padding, and a relative position bias that all layers share
(arXiv 2004.09297)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasper_jax.encoders.bert import PostNormLayer, Shared
from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout, offset_positions
from jasper_jax.encoders.parts import ACTIVATIONS, Dropout, Embedding, layer_norm
from jasper_jax.encoders.seen import Seen
from jasper_jax.encoders.table import Weight, embedding, linear, norm

PADDING = 1  # fixed by transformers: the padding token, and the position row of padding
BUCKETS, MAX_DISTANCE = 32, 128  # fixed by transformers too, whatever config.json says


@dataclass(frozen=True)
class MPNetConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    position_rows: int
    norm_epsilon: float
    init_std: float
    pad_id: int = PADDING

    @property
    def max_positions(self) -> int:
        """Rows 0 and 1 of the position table stand for no token."""
        return self.position_rows - PADDING - 1

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], where: str = "config.json") -> MPNetConfig:
        """From a transformers ``config.json``; absent keys take transformers' defaults."""
        read = Reader(hf, "mpnet", where)
        read.require("relative_attention_num_buckets", BUCKETS)
        read.require("pad_token_id", PADDING)
        read.require("is_decoder", False)
        hidden_size = read.integer("hidden_size", 768)
        return cls(
            vocab_size=read.integer("vocab_size", 30527),
            hidden_size=hidden_size,
            num_layers=read.integer("num_hidden_layers", 12),
            num_heads=read.heads(hidden_size, 12),
            intermediate_size=read.integer("intermediate_size", 3072),
            activation=read.choice("hidden_act", tuple(ACTIVATIONS), "gelu"),
            position_rows=read.integer("max_position_embeddings", 512),
            norm_epsilon=read.number("layer_norm_eps", 1e-12),
            init_std=read.number("initializer_range", 0.02),
        )


def relative_buckets(length: int) -> np.ndarray:
    """[L, L] bucket of key position minus query position: half the buckets for each direction; in each, the first
    half one distance per bucket, the rest growing logarithmically up to ``MAX_DISTANCE``."""
    position = np.arange(length, dtype=np.int32)
    relative = position[None, :] - position[:, None]
    distance = np.abs(relative)
    half = BUCKETS // 2
    exact = half // 2
    scaled = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(MAX_DISTANCE / exact)
    far = np.minimum(exact + (scaled * (half - exact)).astype(np.int32), half - 1)
    return np.where(distance < exact, distance, far) + half * (relative > 0)


class MPNetEmbeddings(nnx.Module):
    """word + position, then a norm; no token types."""

    def __init__(self, config: MPNetConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, std = config.hidden_size, config.init_std
        self.word = Embedding(config.vocab_size, D, std=std, dtype=dtype, rngs=rngs, padding=PADDING)
        self.position = Embedding(config.position_rows, D, std=std, dtype=dtype, rngs=rngs, padding=PADDING)
        self.norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        positions = self.position(offset_positions(token_ids, layout, PADDING))
        return self.norm(layout.words(self.word, token_ids) + positions)


class MPNetEnds(nnx.Module):
    def __init__(self, config: MPNetConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = MPNetEmbeddings(config, dtype=dtype, rngs=rngs)
        self.relative_bias = Embedding(BUCKETS, config.num_heads, std=config.init_std, dtype=jnp.float32, rngs=rngs)

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, Shared]:
        # Distances count columns, padding or not, as transformers does; [L, L, H].
        bias = self.relative_bias(jnp.asarray(relative_buckets(token_ids.shape[1])))
        return drop(self.embeddings(token_ids, layout), 0), Shared(Seen.of(layout), bias.transpose(2, 0, 1)[None])

    def finish(self, x: jax.Array) -> jax.Array:
        return x


def mpnet_weights(config: MPNetConfig) -> tuple[Weight, ...]:
    layer = "encoder.layer.{}"
    return (
        *embedding("embeddings.word_embeddings", "embeddings/word"),
        *embedding("embeddings.position_embeddings", "embeddings/position"),
        *norm("embeddings.LayerNorm", "embeddings/norm"),
        *embedding("encoder.relative_attention_bias", "relative_bias"),
        *linear(f"{layer}.attention.attn.q", "layers/attention/query"),
        *linear(f"{layer}.attention.attn.k", "layers/attention/key"),
        *linear(f"{layer}.attention.attn.v", "layers/attention/value"),
        *linear(f"{layer}.attention.attn.o", "layers/attention/output"),
        *norm(f"{layer}.attention.LayerNorm", "layers/attention_norm"),
        *linear(f"{layer}.intermediate.dense", "layers/feed_forward/up"),
        *linear(f"{layer}.output.dense", "layers/feed_forward/down"),
        *norm(f"{layer}.output.LayerNorm", "layers/feed_forward_norm"),
    )


FAMILY = Family(
    model_type="mpnet",
    architecture="MPNetModel",
    read_config=MPNetConfig.from_hf,
    ends=MPNetEnds,
    layer=PostNormLayer,
    weights=mpnet_weights,
    prefixes=("mpnet.",),
    ignored=("embeddings.position_ids", "pooler.*", "lm_head.*"),
)
