"""The vision side of a student: an encoder whose tokens replace words in the text encoder's input.

An image is written ``start``, n times ``image``, ``end`` (arXiv 2412.19048; the public Jasper checkpoint's tokens). The
n positions get vision tokens: pooled to the student's width without parameters, or pooled to n tokens and mapped by a
learned matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.dense import linear
from jasper_jax.encoders.layout import Inserted
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import VisionEncoder
from jasper_jax.vision.preprocess import Preprocessing
from jasper_jax.vision.resampling import adaptive_pool

START, IMAGE, END = IMAGE_TOKENS = ("<|jasper_img_start|>", "<|jasper_img_token|>", "<|jasper_img_end|>")
PARTS = ("vision", "projector")
"""Names of the vision side's parameters, beside ``encoder`` and ``heads``."""


@dataclasses.dataclass(frozen=True)
class VisionModel:
    """Static settings. ``width``: D of the text encoder. ``alone``: the token ids of an input that is one image, with
    special tokens. ``projector``: ``none``, ``linear``, or ``joint``, which maps all tokens of an image at once."""

    encoder: VisionEncoder
    preprocessing: Preprocessing
    tokens: int
    width: int
    projector: str
    start_id: int
    image_id: int
    end_id: int
    alone: tuple[int, ...]
    remat: str = "none"

    @property
    def written(self) -> str:
        """An image in a text, for the tokenizer."""
        return START + IMAGE * self.tokens + END

    @property
    def projected(self) -> tuple[int, int]:
        """The shape of the projector's matrix: ``[C, D]``, joint ``[n·C, n·D]``."""
        times = self.tokens if self.projector == "joint" else 1
        return times * self.encoder.hidden_size, times * self.width

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters; the projector's outputs have the variance of word embeddings."""
        key = jax.random.key(seed)
        params: dict[str, Any] = {"vision": self.encoder.init(jax.random.fold_in(key, 1 << 16))}
        if self.projector != "none":
            C, D = self.projected
            kernel = jax.random.normal(jax.random.fold_in(key, 1 << 17), (C, D), jnp.float32)
            params["projector"] = {"kernel": kernel * (0.02 * C**-0.5), "bias": jnp.zeros((D,), jnp.float32)}
        return params

    def features(
        self, params: Mapping[str, Any], pixels: jax.Array, *, training: bool = False, compute_dtype: Any = jnp.float32
    ) -> jax.Array:
        """``[N, S, S, 3]`` uint8 -> ``[N, n, C]`` float32 where there is a projector, else ``[N, n, D]``."""
        images = self.preprocessing.normalise(pixels)
        states = self.encoder.apply(
            params["vision"], images, training=training, compute_dtype=compute_dtype, remat=self.remat
        )
        return adaptive_pool(states, self.tokens, self.width if self.projector == "none" else states.shape[-1])

    def image_tokens(
        self, params: Mapping[str, Any], pixels: jax.Array, *, training: bool = False, compute_dtype: Any = jnp.float32
    ) -> jax.Array:
        """``[N, S, S, 3]`` uint8 -> ``[N, n, D]`` float32, inputs of the text encoder."""
        x = self.features(params, pixels, training=training, compute_dtype=compute_dtype)
        if self.projector == "none":
            return x
        x = linear(x.reshape(len(x), -1, self.projected[0]), **params["projector"])
        return x.reshape(len(x), self.tokens, self.width)

    def insert_alone(self, tokens: jax.Array) -> tuple[jax.Array, Inserted]:
        """``[N, n, D]`` tokens of images, each a separate input -> ids ``[N, L]``, and the inserted vectors."""
        ids = np.array(self.alone, np.int32)
        at = ids == self.image_id
        N = tokens.shape[0]
        own = np.where(at, np.cumsum(at) - 1, -1).astype(np.int32)
        which = jnp.where(at, own + self.tokens * jnp.arange(N, dtype=jnp.int32)[:, None], -1)
        return jnp.broadcast_to(ids, (N, len(ids))), Inserted(tokens.reshape(-1, tokens.shape[-1]), which)


def with_image_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the three image tokens, appended where it lacks them."""
    return tokenizer.with_tokens(IMAGE_TOKENS)


def make_vision_model(
    encoder: VisionEncoder,
    preprocessing: Preprocessing,
    *,
    tokens: int,
    width: int,
    projector: str,
    tokenizer: Tokenizer | int,
    max_length: int,
    remat: str = "none",
) -> VisionModel:
    """The vision side of a student.

    ``tokenizer`` has the image tokens; a number instead is the first of their three ids, without special tokens around
    an image. UserError: an image exceeds ``max_length``.
    """
    if isinstance(tokenizer, int):
        start, image, end = tokenizer, tokenizer + 1, tokenizer + 2
        ids = [start, *[image] * tokens, end]
    else:
        start, image, end = (tokenizer.token_id(token) for token in IMAGE_TOKENS)
        (ids,) = tokenizer.with_max_length(None).encode([START + IMAGE * tokens + END])
    assert start is not None
    assert image is not None
    assert end is not None
    if len(ids) > max_length:
        raise UserError(
            f"student.vision.tokens: an image of {tokens} tokens makes an input of {len(ids)}, student.max_length is"
            f" {max_length}; take at most {max_length - len(ids) + tokens}, or raise student.max_length"
        )
    alone = tuple(int(i) for i in ids)
    return VisionModel(encoder, preprocessing, tokens, width, projector, start, image, end, alone, remat)
