"""The decoder families (Llama, Mistral, Qwen): RMS norms before attention and a gated feed-forward.

The config's ``is_causal`` decides whether attention is causal, as in transformers: embedding models made from decoders
are of both kinds. ``Defaults`` holds what differs between families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx

from jasper_jax.encoders.encoder import Family
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout
from jasper_jax.encoders.parts import ACTIVATIONS, Dropout, Embedding, rms_norm
from jasper_jax.encoders.pooling import Pooling
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
from jasper_jax.encoders.table import Weight, embedding, linear, norm
from jasper_jax.runtime.errors import UserError


@dataclass(frozen=True)
class DecoderConfig(RotaryConfig):
    head_norms: bool = False


@dataclass(frozen=True)
class Defaults:
    """transformers' values for absent keys, and what is particular to the family."""

    vocab_size: int = 32000
    intermediate_size: int = 11008
    max_positions: int = 2048
    num_kv_heads: int | None = None  # as many as heads
    head_dim: int | None = None  # hidden_size over heads
    qkv_bias: bool | None = None  # by the key attention_bias
    mlp_bias: bool = False  # by the key mlp_bias, where True
    head_norms: bool = False
    window: int | None = None
    windowed: str = "never"  # "never", "all" (Mistral) or "above" (Qwen: layers from max_window_layers on)
    norm_epsilon: float = 1e-6


def read_decoder(hf: Mapping[str, Any], family: str, defaults: Defaults, where: str) -> DecoderConfig:
    """A decoder's ``config.json``. UserError: a setting not implemented, or custom code without ``is_causal``."""
    read = Reader(hf, family, where)
    hidden_size, num_layers = read.integer("hidden_size", 4096), read.layers(32)
    num_heads = read.integer("num_attention_heads", 32)
    head_dim = read.optional("head_dim", defaults.head_dim)
    if head_dim is None:
        head_dim = hidden_size // read.heads(hidden_size, 32)
    num_kv_heads = read.optional("num_key_value_heads", defaults.num_kv_heads) or num_heads
    if num_heads % num_kv_heads:
        raise UserError(f"{where}: num_key_value_heads is {num_kv_heads}, which does not divide {num_heads} heads")
    if hf.get("auto_map") and "is_causal" not in hf:
        raise UserError(
            f"{where}: the model has custom code (auto_map), which is never run, and is_causal is missing. Its model "
            "card says whether its attention is causal: set causal to true or false (recipe: teachers[].causal, "
            "student.causal; in Python: Embedder.load(causal=...)), or add is_causal to this file"
        )
    max_positions = read.integer("max_position_embeddings", defaults.max_positions)
    window, derived = _windows(read, defaults, num_layers)
    layer_types = read_layer_types(read, num_layers, derived)
    if SLIDING in layer_types and window is None:
        raise UserError(f"{where}: layer_types has {SLIDING}, but sliding_window is null; set a number")
    rope = read_rope(read, head_dim, max_positions, 10000.0)
    bias = read.flag("attention_bias", False) if defaults.qkv_bias is None else defaults.qkv_bias
    mlp_bias = defaults.mlp_bias and read.flag("mlp_bias", False)
    return DecoderConfig(
        vocab_size=read.integer("vocab_size", defaults.vocab_size),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=read.integer("intermediate_size", defaults.intermediate_size),
        activation=read.choice("hidden_act", tuple(ACTIVATIONS), "silu"),
        max_positions=max_positions,
        norm_epsilon=read.number("rms_norm_eps", defaults.norm_epsilon),
        init_std=read.number("initializer_range", 0.02),
        pad_id=read.padding(),
        kinds=tuple(Kind(rope, window if kind == SLIDING else None) for kind in dict.fromkeys(layer_types)),
        layer_types=layer_types,
        causal=read.flag("is_causal", True),
        qkv_bias=bias,
        output_bias=bias and defaults.qkv_bias is None,
        up_bias=mlp_bias,
        down_bias=mlp_bias,
        head_norms=defaults.head_norms,
    )


def _windows(read: Reader, defaults: Defaults, num_layers: int) -> tuple[int | None, list[str]]:
    """The window, and the kind of each layer where ``layer_types`` is absent."""
    if defaults.windowed == "never":
        return None, [FULL] * num_layers
    window = read.optional("sliding_window", defaults.window)
    if defaults.windowed == "all":
        return window, [FULL if window is None else SLIDING] * num_layers
    if not read.flag("use_sliding_window", False):
        return None, [FULL] * num_layers
    first = read.integer("max_window_layers", 28, least=0)
    return window, [SLIDING if window is not None and i >= first else FULL for i in range(num_layers)]


class PreNormLayer(nnx.Module):
    """x <- x + attention(norm(x)); x <- x + feed_forward(norm(x))."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        make_norm = partial(rms_norm, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        head_norm = make_norm if config.head_norms else None
        self.attention_norm = make_norm(config.hidden_size)
        self.attention = RotaryAttention(config, dtype=dtype, rngs=rngs, head_norm=head_norm)
        self.feed_forward_norm = make_norm(config.hidden_size)
        self.feed_forward = GatedFeedForward(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, shared: RotaryShared, index: jax.Array, drop: Dropout) -> jax.Array:
        x = x + drop(self.attention(self.attention_norm(x), shared, index), 0)
        return x + drop(self.feed_forward(self.feed_forward_norm(x)), 1)


class DecoderEnds(nnx.Module):
    """The word embeddings, and the norm after the last layer."""

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embedding(config.vocab_size, config.hidden_size, std=config.init_std, dtype=dtype, rngs=rngs)
        self.final_norm = rms_norm(config.hidden_size, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def start(self, token_ids: jax.Array, layout: Layout, drop: Dropout) -> tuple[jax.Array, RotaryShared]:
        return drop(layout.words(self.embeddings, token_ids), 0), RotaryShared.of(self.config, layout)

    def finish(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x)


def decoder_weights(config: DecoderConfig) -> tuple[Weight, ...]:
    layer = "layers.{}"
    head_norms = (
        *norm(f"{layer}.self_attn.q_norm", "layers/attention/query_norm", bias=False),
        *norm(f"{layer}.self_attn.k_norm", "layers/attention/key_norm", bias=False),
    )
    return (
        *embedding("embed_tokens", "embeddings"),
        *norm("norm", "final_norm", bias=False),
        *norm(f"{layer}.input_layernorm", "layers/attention_norm", bias=False),
        *norm(f"{layer}.post_attention_layernorm", "layers/feed_forward_norm", bias=False),
        *linear(f"{layer}.self_attn.q_proj", "layers/attention/query", bias=config.qkv_bias),
        *linear(f"{layer}.self_attn.k_proj", "layers/attention/key", bias=config.qkv_bias),
        *linear(f"{layer}.self_attn.v_proj", "layers/attention/value", bias=config.qkv_bias),
        *linear(f"{layer}.self_attn.o_proj", "layers/attention/output", bias=config.output_bias),
        *linear(f"{layer}.mlp.gate_proj", "layers/feed_forward/gate", bias=config.up_bias),
        *linear(f"{layer}.mlp.up_proj", "layers/feed_forward/up", bias=config.up_bias),
        *linear(f"{layer}.mlp.down_proj", "layers/feed_forward/down", bias=config.down_bias),
        *(head_norms if config.head_norms else ()),
    )


def decoder_family(model_type: str, architecture: str, defaults: Defaults) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        read_config=lambda hf, where: read_decoder(hf, model_type, defaults, where),
        ends=DecoderEnds,
        layer=PreNormLayer,
        weights=decoder_weights,
        ignored=("lm_head.weight", "score.*", "*.rotary_emb.inv_freq"),
        pooling=lambda config: Pooling(("lasttoken" if config.causal else "mean",)),
        has_causal=True,
    )


LLAMA = decoder_family("llama", "LlamaModel", Defaults(mlp_bias=True))
"""arXiv 2302.13971, 2407.21783: the plain decoder."""

MISTRAL_DEFAULTS = Defaults(
    intermediate_size=14336, max_positions=131072, num_kv_heads=8, qkv_bias=False, window=4096, windowed="all"
)
MISTRAL = decoder_family("mistral", "MistralModel", MISTRAL_DEFAULTS)
"""arXiv 2310.06825: grouped queries, a sliding window in every layer. e5-mistral, SFR-Embedding."""

_QWEN = Defaults(
    vocab_size=151936,
    intermediate_size=22016,
    max_positions=32768,
    num_kv_heads=32,
    window=4096,
    windowed="above",
)
QWEN2 = decoder_family("qwen2", "Qwen2Model", replace(_QWEN, qkv_bias=True))
"""arXiv 2407.10671: biases on query, key and value. stella_en_1.5B_v5 and Jasper (bidirectional), gte-Qwen2 (both)."""
QWEN3 = decoder_family("qwen3", "Qwen3Model", replace(_QWEN, head_dim=128, head_norms=True))
"""arXiv 2505.09388: norms of each head's query and key, heads of any width. Qwen3-Embedding."""
