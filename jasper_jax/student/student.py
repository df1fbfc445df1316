"""The student: an encoder, pooling, and projection heads. Token ids in, one vector per head out.

Its parameters are ``{"encoder": ..., "heads": {name: {"kernel", "bias"}}}``, with ``vision`` and perhaps ``projector``
if it takes images (``jasper_jax.vision``), and ``losses`` if a loss term has learned numbers. :class:`Student` holds
everything static.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.packed import Packed, encode_packed, encode_rows, in_pieces
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.losses.terms import TERMS
from jasper_jax.parameters.sharding import WIDE, constrain
from jasper_jax.student.heads import HeadShape, project
from jasper_jax.vision.vision_model import VisionModel


@dataclasses.dataclass(frozen=True)
class Student:
    """The static side of the student."""

    encoder: Encoder
    pooling: Pooling
    heads: Mapping[str, HeadShape]
    prompts: Mapping[str, str]
    max_length: int
    compute_dtype: str
    remat: str
    dropout: float
    vector_dropout: float
    vision_model: VisionModel | None = None
    learned_terms: tuple[str, ...] = ()
    """The loss terms with learned numbers, which are trained but not exported."""

    @property
    def width(self) -> int:
        """D, the width of the pooled vector."""
        return self.pooling.size(self.encoder.hidden_size)

    def shapes(self) -> dict[str, Any]:
        """The tree of parameters with shapes and dtypes in place of arrays; nothing is computed."""
        return jax.eval_shape(lambda: self.init(0))

    def init(self, seed: int) -> dict[str, Any]:
        """Random parameters, determined by the seed."""
        key = jax.random.key(seed)
        vision = self.vision_model.init(seed) if self.vision_model else {}
        encoder = self.encoder.init(jax.random.fold_in(key, 0))
        return {"encoder": encoder, "heads": self.init_heads(seed), **vision, **self.init_terms()}

    def init_terms(self) -> dict[str, Any]:
        """Initial values of the loss terms' learned numbers: ``{"losses": {term: {name: scalar}}}``; {} without any."""
        if not self.learned_terms:
            return {}
        start = {term: {k: jnp.float32(v) for k, v in TERMS[term].learned.items()} for term in self.learned_terms}
        return {"losses": start}

    def init_heads(self, seed: int) -> dict[str, Any]:
        """Random heads, each determined by the seed and its position in the recipe."""
        key = jax.random.key(seed)
        return {
            name: head.init(jax.random.fold_in(key, i + 1), self.width)
            for i, (name, head) in enumerate(self.heads.items())
        }

    def pooled(
        self, params: Mapping[str, Any], texts: Packed, key: jax.Array | None = None, *, at_once: int | None = None
    ) -> jax.Array:
        """Pooled vectors ``[B, D]`` (float32) of packed texts, in the batch's order.

        Args:
          params: ``encoder/layers`` is one stack or a pair of stacks.
          texts: the batch; other keys are ignored.
          key: random key for dropout; None disables dropout (evaluation).
          at_once: as in :func:`in_pieces`.
        """
        options = self._training(key)
        vectors = encode_packed(self.encoder, self.pooling, params["encoder"], texts, at_once=at_once, **options)
        return self._dropped(vectors, key)

    def pooled_images(
        self, params: Mapping[str, Any], pixels: jax.Array, key: jax.Array | None = None, *, at_once: int | None = None
    ) -> jax.Array:
        """Pooled vectors ``[R, D]`` (float32) of images, each an input of its own: ``pixels [R, S, S, 3]`` uint8."""
        vision_model = self.vision_model
        assert vision_model is not None
        dtype = jnp.dtype(self.compute_dtype)

        def encode(rows: Mapping[str, jax.Array], key: jax.Array | None) -> jax.Array:
            tokens = vision_model.image_tokens(params, rows["pixels"], training=True, compute_dtype=dtype)
            return self.pooled_tokens(params["encoder"], tokens, key)

        return self._dropped(constrain(in_pieces(encode, {"pixels": pixels}, key, at_once)), key)

    def pooled_tokens(self, encoder: Any, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Pooled vectors ``[N, D]`` of images, each an input of its own, given as their tokens ``[N, n, D]`` in the
        text encoder's input. ``encoder``: its parameters."""
        assert self.vision_model is not None
        ids, inserted = self.vision_model.insert_alone(tokens)
        segments, prompts = jnp.ones(ids.shape, jnp.int32), jnp.zeros((len(ids), 1), jnp.int32)
        options = self._training(key)
        vectors = encode_rows(
            self.encoder, self.pooling, encoder, ids, segments, 1, prompts, inserted=inserted, **options
        )
        return vectors[:, 0]

    def _training(self, key: jax.Array | None) -> dict[str, Any]:
        """Options of ``Encoder.apply`` in a step; no dropout without a key."""
        return {
            "training": True,
            "compute_dtype": jnp.dtype(self.compute_dtype),
            "remat": self.remat,
            "dropout": self.dropout if key is not None else 0.0,
            "dropout_key": key,
        }

    def _dropped(self, vectors: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or not self.vector_dropout:
            return vectors
        keep = 1.0 - self.vector_dropout
        kept = jax.random.bernoulli(jax.random.fold_in(key, 1 << 20), keep, vectors.shape)
        return jnp.where(kept, vectors / keep, 0.0)

    def project(self, params: Mapping[str, Any], pooled: jax.Array, heads: Sequence[str]) -> dict[str, jax.Array]:
        """``pooled [B, D]`` -> {head: ``[B, E]``}, not normalised."""
        return {name: constrain(project(params["heads"][name], pooled), None, WIDE) for name in heads}
