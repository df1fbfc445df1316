"""MPNet: BERT's layers, positions counted from the padding, and a relative position bias that all layers share
(arXiv 2004.09297)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasper_jax.encoders.bert import PostNormLayer, Shared
from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout, Seen, offset_positions
from jasper_jax.encoders.parts import Dropout, Embedding, layer_norm
from jasper_jax.encoders.roberta import RobertaConfig
from jasper_jax.encoders.table import Weight, embedding, linear, norm

PADDING = 1  # fixed by transformers: the padding token, and the position row of padding
BUCKETS, MAX_DISTANCE = 32, 128  # fixed by transformers too, whatever config.json says


def read_config(hf: Mapping[str, Any], where: str = "config.json") -> RobertaConfig:
    """From a transformers ``config.json``; absent keys take transformers' defaults."""
    read = Reader(hf, "mpnet", where)
    read.require("relative_attention_num_buckets", BUCKETS)
    read.require("pad_token_id", PADDING)
    return RobertaConfig.read("mpnet", 30527, hf, where)


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

    def __init__(self, config: RobertaConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, std = config.hidden_size, config.init_std
        self.word = Embedding(config.vocab_size, D, std=std, dtype=dtype, rngs=rngs, padding=PADDING)
        self.position = Embedding(config.position_rows, D, std=std, dtype=dtype, rngs=rngs, padding=PADDING)
        self.norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, token_ids: jax.Array, layout: Layout) -> jax.Array:
        positions = self.position(offset_positions(token_ids, layout, PADDING))
        return self.norm(layout.words(self.word, token_ids) + positions)


class MPNetEnds(nnx.Module):
    def __init__(self, config: RobertaConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.embeddings = MPNetEmbeddings(config, dtype=dtype, rngs=rngs)
        self.relative_bias = Embedding(BUCKETS, config.num_heads, std=config.init_std, dtype=jnp.float32, rngs=rngs)

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, Shared]:
        # Distances count columns, padding or not, as transformers does; [L, L, H].
        bias = self.relative_bias(jnp.asarray(relative_buckets(token_ids.shape[1])))
        return drop(self.embeddings(token_ids, layout), 0), Shared(Seen.of(layout), bias.transpose(2, 0, 1)[None])

    def finish(self, x: jax.Array) -> jax.Array:
        return x


def mpnet_weights(config: RobertaConfig) -> tuple[Weight, ...]:
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
    read_config=read_config,
    ends=MPNetEnds,
    layer=PostNormLayer,
    weights=mpnet_weights,
    prefixes=("mpnet.",),
    ignored=("embeddings.position_ids", "pooler.*", "lm_head.*"),
)
