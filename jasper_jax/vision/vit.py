"""The vision transformer (arXiv 2010.11929) that SigLIP, CLIP and DINOv2 share: patches, positions, pre-norm layers.

Families differ in class token, norms at the ends, biases, layer scale and names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jasper_jax.encoders.bert import FeedForward, SelfAttention
from jasper_jax.encoders.hf_config import Reader
from jasper_jax.encoders.parts import Dropout, layer_norm
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.resampling import resized


@dataclass(frozen=True)
class VitConfig:
    """``image_size``: at which it runs; ``table_side``: patches of a side in the checkpoint's table of positions;
    ``class_shape``, ``table_lead``: shapes in the checkpoint; ``layer_scale``: None for none."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    image_size: int
    patch_size: int
    table_side: int
    norm_epsilon: float
    init_std: float
    class_shape: tuple[int, ...] | None = None
    table_lead: tuple[int, ...] = ()
    patch_bias: bool = True
    first_norm: bool = False
    final_norm: bool = True
    qkv_bias: bool = True
    layer_scale: float | None = None

    @property
    def side(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        return self.side**2 + (self.class_shape is not None)

    def at_size(self, image_size: int | None, where: str) -> VitConfig:
        """The config for another image size. UserError: no whole number of patches."""
        if image_size is None or image_size == self.image_size:
            return self  # patches may leave a rest, which is ignored (SigLIP: 14 in 384)
        P = self.patch_size
        if image_size % P:
            below = image_size // P * P
            fit = f"{below} or {below + P}" if below else f"{P}"
            raise UserError(f"{where}: image size {image_size} is no multiple of the patch size {P}; take {fit}")
        return dataclasses.replace(self, image_size=image_size)


def read_sizes(read: Reader, *, image_size: int, patch_size: int, hidden_size: int, layers: int) -> dict[str, Any]:
    """The sizes that all families' configs have; the arguments are transformers' defaults."""
    read.require("num_channels", 3)
    image, patch = _square(read, "image_size", image_size), _square(read, "patch_size", patch_size)
    if image < patch:
        raise UserError(f"{read.where}: image_size {image} is smaller than a patch of {patch}")
    hidden = read.integer("hidden_size", hidden_size)
    return {
        "hidden_size": hidden,
        "num_layers": read.layers(layers),
        "num_heads": read.heads(hidden, 12),
        "image_size": image,
        "patch_size": patch,
        "table_side": image // patch,
    }


def _square(read: Reader, key: str, default: int) -> int:
    """A size, or two equal ones."""
    value = read.values.get(key)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(f"{read.where}: {key} is {list(value)!r}; expected a square")
        read = dataclasses.replace(read, values={**read.values, key: value[0]})
    return read.integer(key, default)


class Scale(nnx.Module):
    """A factor for each dimension (layer scale, arXiv 2103.17239)."""

    def __init__(self, width: int, value: float, *, dtype: Any):
        self.scale = nnx.Param(jnp.full((width,), value, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...].astype(self.dtype)


class VitLayer(nnx.Module):
    """x <- x + scale · attention(norm(x)); x <- x + scale · feed_forward(norm(x))."""

    def __init__(self, config: VitConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, made = config.hidden_size, {"dtype": dtype, "rngs": rngs}
        self.attention_norm = layer_norm(D, config.norm_epsilon, **made)
        self.attention = SelfAttention(config, **made, qkv_bias=config.qkv_bias)
        self.feed_forward_norm = layer_norm(D, config.norm_epsilon, **made)
        self.feed_forward = FeedForward(config, **made)
        self.scaled = config.layer_scale is not None
        if config.layer_scale is not None:
            self.attention_scale = Scale(D, config.layer_scale, dtype=dtype)
            self.feed_forward_scale = Scale(D, config.layer_scale, dtype=dtype)

    def __call__(self, x: jax.Array, shared: None, index: jax.Array, drop: Dropout) -> jax.Array:
        y = self.attention(self.attention_norm(x))
        x = x + drop(self.attention_scale(y) if self.scaled else y, 0)
        y = self.feed_forward(self.feed_forward_norm(x))
        return x + drop(self.feed_forward_scale(y) if self.scaled else y, 1)


class Patches(nnx.Module):
    """PyTorch's convolution of stride P as one product. The kernel is the checkpoint's with its axes reversed,
    ``[P, P, 3, D]``: across, down, colour, dimension."""

    def __init__(self, config: VitConfig, *, dtype: Any, rngs: nnx.Rngs):
        P, D = config.patch_size, config.hidden_size
        self.patch, self.dtype, self.biased = P, dtype, config.patch_bias
        self.kernel = nnx.Param(config.init_std * jax.random.normal(rngs.params(), (P, P, 3, D), jnp.float32))
        if self.biased:
            self.bias = nnx.Param(jnp.zeros((D,), jnp.float32))

    def __call__(self, images: jax.Array) -> jax.Array:
        """``[N, S, S, 3]`` -> ``[N, ⌊S/P⌋², D]``, row by row."""
        N, S, _, _ = images.shape
        P, side = self.patch, S // self.patch
        x = (
            images[:, : side * P, : side * P]
            .astype(self.dtype)
            .reshape(N, side, P, side, P, 3)
            .transpose(0, 1, 3, 4, 2, 5)
        )
        kernel = self.kernel[...].astype(self.dtype)
        x = x.reshape(N, side * side, P * P * 3) @ kernel.reshape(P * P * 3, -1)
        return x + self.bias[...].astype(self.dtype) if self.biased else x


class VitEnds(nnx.Module):
    """Patches, class token and positions before the layers; norms where the family has them."""

    def __init__(self, config: VitConfig, *, dtype: Any, rngs: nnx.Rngs):
        D, std = config.hidden_size, config.init_std
        self.config, self.dtype = config, dtype
        self.patches = Patches(config, dtype=dtype, rngs=rngs)
        if config.class_shape is not None:
            self.class_token = nnx.Param(std * jax.random.normal(rngs.params(), config.class_shape, jnp.float32))
        shape = (*config.table_lead, config.table_side**2 + (config.class_shape is not None), D)
        self.positions = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))
        if config.first_norm:
            self.first_norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)
        if config.final_norm:
            self.final_norm = layer_norm(D, config.norm_epsilon, dtype=dtype, rngs=rngs)

    def start(self, images: jax.Array, drop: Dropout) -> tuple[jax.Array, None]:
        x, config = self.patches(images), self.config
        table = self.positions[...].reshape(-1, config.hidden_size)
        if config.class_shape is None:
            x = x + resized(table, config.side).astype(self.dtype)
        else:
            table = jnp.concatenate([table[:1], resized(table[1:], config.side)])
            first = jnp.broadcast_to(self.class_token[...].reshape(-1), (len(x), 1, config.hidden_size))
            x = jnp.concatenate([first.astype(self.dtype), x], axis=1) + table.astype(self.dtype)
        return drop(self.first_norm(x) if config.first_norm else x, 0), None

    def finish(self, x: jax.Array) -> jax.Array:
        return self.final_norm(x) if self.config.final_norm else x


def vision_part(hf: Mapping[str, Any], model_type: str, where: str) -> Mapping[str, Any]:
    """The vision tower's config, which may be part of the config of a model with two towers."""
    part = hf.get("vision_config")
    if hf.get("model_type") == model_type or part is None:
        return hf
    if not isinstance(part, Mapping):
        raise UserError(f"{where}: vision_config is {part!r}; expected an object")
    return {**part, "model_type": model_type}
