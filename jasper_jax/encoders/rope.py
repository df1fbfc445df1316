"""Rotary positions (RoPE, arXiv 2104.09864) and the scalings of them that published encoders use.

The rotated part of a head is split in halves (as in transformers), component i turning with component i + r/2 by
``position · frequency_i``. A ``Rope`` holds the frequencies, computed once from a config: static and hashable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.hf_config import Reader
from jasper_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Rope:
    """``frequencies``: r/2 radians per token, r ≤ the head's width (the rest is not rotated);
    ``factor``: what cosines and sines are multiplied by (YaRN's attention factor)."""

    frequencies: tuple[float, ...]
    factor: float = 1.0

    def tables(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``[R, L]`` positions -> cosines and sines, each ``[R, L, 1, r/2]`` float32."""
        turns = jnp.asarray(np.array(self.frequencies, np.float32))
        angles = positions.astype(jnp.float32)[:, :, None, None] * turns
        return jnp.cos(angles) * self.factor, jnp.sin(angles) * self.factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """``[B, L, H, d]`` rotated by ``[1 or B, L, 1, r/2]`` tables, in float32 or wider; returns x's dtype."""
    half = cos.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    first, second = x[..., :half].astype(wide), x[..., half : 2 * half].astype(wide)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return turned if 2 * half == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


WIDEST = 1 << 14


def read_rope(
    read: Reader, head_dim: int, max_positions: int, default_theta: float, *, layer_type: str | None = None
) -> Rope:
    """The RoPE that a config asks for: ``rope_parameters`` (transformers 5) or ``rope_theta`` and ``rope_scaling``.

    ``layer_type``: the entry of ``rope_parameters`` to read, where each kind of layer has its own.

    Raises:
      UserError: a scaling that is not implemented, or lacks a number it needs; heads wider than ``WIDEST``.
    """
    if head_dim > WIDEST:  # a table is made of it before the weights can contradict it
        raise UserError(f"{read.where}: heads of {head_dim} components; at most {WIDEST} are rotated")
    values = read.values
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    key = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    if layer_type is not None and isinstance(scaling, Mapping) and layer_type in scaling:
        scaling, key = scaling[layer_type] or {}, f"{key}.{layer_type}"
    if not isinstance(scaling, Mapping):
        raise UserError(f"{read.where}: {key} is {scaling!r}; expected an object")
    inner = Reader({**scaling}, read.family, f"{read.where}: {key}")
    kind = inner.choice("rope_type" if "rope_type" in scaling else "type", tuple(_KINDS), "default")
    theta = inner.number("rope_theta", read.number("rope_theta", default_theta))
    share = inner.number("partial_rotary_factor", read.number("partial_rotary_factor", 1.0))
    width = int(head_dim * share)
    if width % 2 or not 2 <= width <= head_dim:
        raise UserError(
            f"{read.where}: heads of {head_dim} rotate {width} components; expected an even number of 2 to {head_dim}"
        )
    return _KINDS[kind](inner, theta, width, max_positions)


def _plain(theta: float, width: int) -> np.ndarray:
    """θ^(-2i/r) for i = 0 .. r/2 - 1, in float32 as in transformers."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.float32(1.0) / np.power(np.float32(theta), exponents)


def _rope(frequencies: np.ndarray, factor: float = 1.0) -> Rope:
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), float(factor))


def _default(read: Reader, theta: float, width: int, max_positions: int) -> Rope:
    return _rope(_plain(theta, width))


def _linear(read: Reader, theta: float, width: int, max_positions: int) -> Rope:
    """Positions divided by the factor (arXiv 2306.15595)."""
    return _rope(_plain(theta, width) / np.float32(read.needed("factor")))


def _ntk(read: Reader, theta: float, width: int, max_positions: int) -> Rope:
    """The fixed NTK scaling of the first gte-v1.5 checkpoints: θ times the factor, and all divided by its 2/r-th
    power."""
    read.choice("mixed_b", (None,), None)
    factor = read.needed("factor")
    return _rope(_plain(theta * factor, width) / np.float32(factor ** (2 / width)))


def _llama3(read: Reader, theta: float, width: int, max_positions: int) -> Rope:
    """Llama 3.1: wavelengths longer than the original context are divided by the factor, short ones kept, a blend
    between."""
    plain = _plain(theta, width).astype(np.float64)
    context = read.number("original_max_position_embeddings", max_positions)
    low, high = read.needed("low_freq_factor"), read.needed("high_freq_factor")
    if not low < high:
        raise UserError(f"{read.where}: low_freq_factor {low} is not below high_freq_factor {high}")
    keep = np.clip((context * plain / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return _rope(plain * (keep + (1 - keep) / read.needed("factor")))


def _yarn(read: Reader, theta: float, width: int, max_positions: int) -> Rope:
    """YaRN (arXiv 2309.00071): fast components kept, slow ones divided by the factor, a linear ramp between."""
    plain = _plain(theta, width).astype(np.float64)
    factor, context = read.needed("factor"), read.number("original_max_position_embeddings", max_positions)

    def component(turns: float) -> float:
        """The component that makes this many turns within the original context."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = component(read.number("beta_fast", 32.0)), component(read.number("beta_slow", 1.0))
    if read.choice("truncate", (True, False), True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    slow = np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    return _rope(plain * (1 - slow) + plain / factor * slow, _yarn_attention(read, factor))


def _yarn_attention(read: Reader, factor: float) -> float:
    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if read.values.get("attention_factor") is not None:
        return read.needed("attention_factor")
    if read.values.get("mscale") and read.values.get("mscale_all_dim"):
        return grown(read.needed("mscale")) / grown(read.needed("mscale_all_dim"))
    return grown(1.0)


_KINDS: dict[str, Callable[[Reader, float, int, int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,  # differs only beyond max_position_embeddings, which texts never exceed here
    "ntk": _ntk,
    "llama3": _llama3,
    "yarn": _yarn,
}


def as_linear(theta: float, factor: float, head_dim: int) -> dict[str, Any]:
    """``ntk`` scaling, which transformers lacks, as linear scaling of another θ: the frequencies are equal."""
    return {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_dim)}
