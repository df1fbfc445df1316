"""Token states -> one vector per text, as sentence-transformers' Pooling computes it, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jasper_jax.errors import UserError

Arrays = jax.Array | np.ndarray

States = Float[Arrays, "B L D"]
"""[B, L, D] float32."""


def _take(states: States, position: Arrays) -> jax.Array:
    return jnp.take_along_axis(states, position[:, None, None], axis=1)[:, 0]


def _sum(states: States, weight: Arrays) -> jax.Array:
    """Weighted sum over tokens, as a product and a reduction: a dot would be rounded on GPU and TPU."""
    return jnp.sum(states * weight[:, :, None].astype(jnp.float32), axis=1)


def _mean(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    return _sum(states, keep) / jnp.maximum(keep.sum(axis=1, keepdims=True), 1)


def _mean_sqrt_len(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    """The sum over √length."""
    return _sum(states, keep) / jnp.sqrt(jnp.maximum(keep.sum(axis=1, keepdims=True), 1).astype(jnp.float32))


def _weighted_mean(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    """The i-th token of a text (from 1, the prompt's counted even where left out) has weight i."""
    weight = jnp.where(keep, jnp.arange(1, keep.shape[1] + 1)[None, :] - start[:, None], 0)
    return _sum(states, weight) / jnp.maximum(weight.sum(axis=1, keepdims=True), 1)


def _cls(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    """The first token, left padding skipped."""
    return _take(states, jnp.argmax(keep, axis=1))


def _last(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    """The last token, wherever padding stands."""
    return _take(states, keep.shape[1] - 1 - jnp.argmax(keep[:, ::-1], axis=1))


def _max(states: States, keep: Arrays, start: Arrays) -> jax.Array:
    return jnp.max(jnp.where(keep[:, :, None], states, -jnp.inf), axis=1)


MODES: dict[str, Callable[[States, Arrays, Arrays], Arrays]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""sentence-transformers' name of a mode -> function of states, the tokens that count [B, L], and the column of each
text's first token [B]."""


@dataclass(frozen=True)
class Pooling:
    """One mode, or several whose vectors are joined in the order given.

    ``include_prompt=False`` leaves the prompt's tokens out (INSTRUCTOR, NV-Embed). Hashable, so it can be a static
    argument of a jitted function.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __post_init__(self) -> None:
        wrong = [mode for mode in self.modes if mode not in MODES]
        if wrong or not self.modes:
            raise UserError(f"pooling mode {wrong[0] if wrong else None!r} is unknown; {', '.join(MODES)} are allowed")

    def size(self, hidden_size: int) -> int:
        """Width of the pooled vector."""
        return len(self.modes) * hidden_size

    def __call__(
        self,
        states: Float[Arrays, "B L D"],
        mask: Shaped[Arrays, "B L"],
        prompt_lengths: Int[Arrays, " B"] | None = None,
    ) -> Float[jax.Array, "B _"]:
        """``[B, L, D]`` states and ``[B, L]`` mask -> ``[B, len(modes)·D]`` float32.

        ``prompt_lengths [B]``: tokens of each text's prompt, special tokens before it counted; needed when the
        prompt is left out. A row without any token gives zeros.
        """
        keep = mask.astype(bool)
        start = jnp.argmax(keep, axis=1)
        if not self.include_prompt:
            if prompt_lengths is None:
                raise ValueError("this pooling leaves the prompt out: prompt_lengths is needed")
            keep = keep & (jnp.arange(keep.shape[1])[None, :] >= (start + prompt_lengths)[:, None])
        states = states.astype(jnp.float32)
        vectors = jnp.concatenate([MODES[mode](states, keep, start) for mode in self.modes], axis=-1)
        return jnp.where(keep.any(axis=1, keepdims=True), vectors, 0.0)
