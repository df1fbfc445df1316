"""Teachers that run inside the train step (``teachers[].mode: online``) instead of before it, without a gradient.

Architecture, pooling and prompts of the teacher are static; its parameters are an argument of the step, like the
student's frozen ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.data.texts import TextStore
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.dense import dense
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.packed import Packed, encode_packed
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.losses import normalize
from jasper_jax.teachers.vectors import scales


@dataclass(frozen=True)
class OnlineTeacher:
    """The static side of a teacher; its parameters are ``{"encoder", "dense": ((kernel, bias or None), ...)}``."""

    encoder: Encoder
    pooling: Pooling
    activations: tuple[str, ...]
    dtype: str

    def vectors(self, params: Mapping[str, Any], texts: Packed, *, at_once: int | None = None) -> jax.Array:
        """``[B, T]`` float32, not normalised, in the batch's order; no gradient flows into the teacher."""
        dtype = jnp.dtype(self.dtype)
        x = encode_packed(self.encoder, self.pooling, params["encoder"], texts, at_once=at_once, compute_dtype=dtype)
        return jax.lax.stop_gradient(dense(x, params["dense"], self.activations))


class OnlineVectors:
    """A teacher that runs in the step, with the interface of a vector store: the closed-form start of heads and the
    evaluation read vectors of single texts."""

    is_online = True

    def __init__(self, name: str, embedder: Embedder, texts: TextStore):
        self.name, self.embedder, self._texts = name, embedder, texts
        self.fingerprint = texts.fingerprint
        self.dim = embedder.default_dim

    @property
    def teacher(self) -> OnlineTeacher:
        _, activations = self.embedder.output(self.dim)
        return OnlineTeacher(self.embedder.encoder, self.embedder.pooling, activations, self.embedder.dtype)

    @property
    def params(self) -> dict[str, Any]:
        weights, _ = self.embedder.output(self.dim)
        return {"encoder": self.embedder.params, "dense": weights}

    @property
    def prompts(self) -> dict[str, str]:
        """Text put before a text, by its kind."""
        return {kind: self.embedder.prompt(kind) for kind in KINDS}

    def size(self, split: str) -> int:
        return self._texts.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """``[n, T]`` float32 of norm 1, computed on each call."""
        rows = self._texts.read(split, indices)
        return self.embedder.encode([r.text for r in rows], [r.kind for r in rows])


def join(parts: Sequence[jax.Array], weights: Sequence[float]) -> jax.Array:
    """``teachers.vectors.concatenate`` in a program: ``[B, T_i]`` as one ``[B, ΣT]``."""
    rows = [normalize(part) for part in parts]
    if len(rows) == 1:
        return rows[0]
    return normalize(jnp.concatenate([row * scale for row, scale in zip(rows, scales(weights), strict=True)], axis=1))
