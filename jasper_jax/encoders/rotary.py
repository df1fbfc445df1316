"""What the rotary families share: attention with RoPE and grouped queries, gated feed-forward, masks by kind of layer.

Layers of one encoder may be of several kinds (global and local attention, each with its RoPE). A kind is data: the
masks and tables of every kind are made once, and a layer picks its own by its index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jasper_jax.encoders.attention import attend
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.layout import Layout, Seen, pick
from jasper_jax.encoders.parts import ACTIVATIONS, dense
from jasper_jax.encoders.rope import Rope, rotate
from jasper_jax.runtime.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names of the kinds of layer."""


@dataclass(frozen=True)
class Kind:
    """``window``: how far a token sees, as in ``Seen``; None for all."""

    rope: Rope
    window: int | None = None


@dataclass(frozen=True)
class RotaryConfig:
    """What the modules below read; a family's config may add fields."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    activation: str
    max_positions: int
    norm_epsilon: float
    init_std: float
    pad_id: int
    kinds: tuple[Kind, ...]
    layer_types: tuple[str, ...]  # of each layer: FULL or SLIDING
    causal: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    up_bias: bool = False
    down_bias: bool = False

    @property
    def kind_of_layer(self) -> tuple[int, ...]:
        """Index into ``kinds`` of each layer; ``kinds`` is in order of first use."""
        order = list(dict.fromkeys(self.layer_types))
        return tuple(order.index(layer_type) for layer_type in self.layer_types)


class RotaryShared(NamedTuple):
    """What every layer reads. ``cos``, ``sin``: ``[N, 1 or R, L, 1, r/2]``, N the number of kinds, or 1 where all have
    one RoPE."""

    seen: Seen
    cos: jax.Array
    sin: jax.Array

    @classmethod
    def of(cls, config: RotaryConfig, layout: Layout) -> RotaryShared:
        seen = Seen.of(layout, [kind.window for kind in config.kinds], config.causal)
        ropes = [kind.rope for kind in config.kinds]
        tables = [rope.tables(layout.columns) for rope in (ropes if len(set(ropes)) > 1 else ropes[:1])]
        return cls(seen, jnp.stack([cos for cos, _ in tables]), jnp.stack([sin for _, sin in tables]))

    def at(self, kinds: Sequence[int], index: jax.Array) -> tuple[Seen, jax.Array, jax.Array]:
        """Mask, cosines and sines of layer ``index``."""
        kind = jnp.asarray(np.array(kinds, np.int32))[index]
        return self.seen.at(kind), pick(self.cos, kind), pick(self.sin, kind)


class RotaryAttention(nnx.Module):
    """Query, key, value and output maps, D -> H·d, K·d, K·d and H·d -> D; query and key turned by RoPE.

    ``head_norm(width)`` makes a norm for each head's query and one for its key (Qwen3); None for neither.
    """

    def __init__(self, config: RotaryConfig, *, dtype: Any, rngs: nnx.Rngs, head_norm: Any = None):
        D, H, K, d = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        made = {"std": config.init_std, "dtype": dtype, "rngs": rngs}
        self.config = config
        self.query = dense(D, H * d, bias=config.qkv_bias, **made)
        self.key = dense(D, K * d, bias=config.qkv_bias, **made)
        self.value = dense(D, K * d, bias=config.qkv_bias, **made)
        self.output = dense(H * d, D, bias=config.output_bias, **made)
        self.has_head_norm = head_norm is not None
        if head_norm is not None:
            self.query_norm, self.key_norm = head_norm(d), head_norm(d)

    def __call__(self, x: jax.Array, shared: RotaryShared, index: jax.Array) -> jax.Array:
        (B, L, _), d = x.shape, self.config.head_dim
        q = self.query(x).reshape(B, L, self.config.num_heads, d)
        k = self.key(x).reshape(B, L, self.config.num_kv_heads, d)
        v = self.value(x).reshape(B, L, self.config.num_kv_heads, d)
        if self.has_head_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        seen, cos, sin = shared.at(self.config.kind_of_layer, index)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, seen=seen)
        return self.output(out.reshape(B, L, -1))


class GatedFeedForward(nnx.Module):
    """``down(activation(gate x) · up x)``, D -> F -> D (SwiGLU, GeGLU; arXiv 2002.05202)."""

    def __init__(self, config: RotaryConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        made = {"std": config.init_std, "dtype": dtype, "rngs": rngs}
        self.activation = config.activation
        self.gate = dense(D, F, bias=config.up_bias, **made)
        self.up = dense(D, F, bias=config.up_bias, **made)
        self.down = dense(F, D, bias=config.down_bias, **made)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


def read_layer_types(read: Reader, num_layers: int, derived: Sequence[str]) -> tuple[str, ...]:
    """``layer_types`` of a config, ``derived`` where it has none: FULL or SLIDING for each layer."""
    layer_types = read.values.get("layer_types")
    if layer_types is None:
        return tuple(derived)
    if (
        not isinstance(layer_types, (list, tuple))
        or len(layer_types) != num_layers
        or any(kind not in (FULL, SLIDING) for kind in layer_types)
    ):
        raise UserError(
            f"{read.where}: layer_types is {layer_types!r}; expected {num_layers} times {FULL} or {SLIDING}"
        )
    return tuple(layer_types)
