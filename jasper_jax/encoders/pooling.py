"""Token states -> one vector per text, as sentence-transformers' Pooling computes it, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from jasper_jax.runtime.errors import UserError

Arrays = jax.Array | np.ndarray
Weights = tuple[Arrays, Arrays]
"""The weights of a text's tokens ``[..., L]``, and the divisor of their weighted sum ``[...]``: dividing last makes the
mean of ones exactly one."""


def _mean(keep: Arrays, start: Arrays) -> Weights:
    return keep, keep.sum(axis=-1)


def _mean_sqrt_len(keep: Arrays, start: Arrays) -> Weights:
    """The sum over √length."""
    return keep, jnp.sqrt(keep.sum(axis=-1).astype(jnp.float32))


def _weighted_mean(keep: Arrays, start: Arrays) -> Weights:
    """The i-th token of a text has weight i, from 1; a prompt's tokens count even where they are left out."""
    weights = jnp.where(keep, jnp.arange(1, keep.shape[-1] + 1) - start[..., None], 0)
    return weights, weights.sum(axis=-1)


def _cls(keep: Arrays, start: Arrays) -> Weights:
    """The first token after any left padding."""
    return jax.nn.one_hot(jnp.argmax(keep, axis=-1), keep.shape[-1]), jnp.ones(())


def _last(keep: Arrays, start: Arrays) -> Weights:
    """The last token before any right padding."""
    L = keep.shape[-1]
    return jax.nn.one_hot(L - 1 - jnp.argmax(keep[..., ::-1], axis=-1), L), jnp.ones(())


MODES: dict[str, Callable[[Arrays, Arrays], Weights] | None] = {
    "cls": _cls,
    "max": None,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""sentence-transformers' name of a mode -> weights, from the mask ``[..., L]`` and the column of a text's first token
``[...]``. None: the maximum, no weighted sum."""

POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Boolean keys of a Pooling step's config.json, which every version of sentence-transformers reads, and their modes;
several modes are concatenated in this order."""


def _combine(mode: str, states: Arrays, keep: Arrays, start: Arrays) -> jax.Array:
    """``[R, L, D]`` states, ``[R, S, L]`` mask -> ``[R, S, D]``."""
    weigh = MODES[mode]
    if weigh is None:
        by_text = jnp.moveaxis(jnp.asarray(keep), 1, 0)
        highest = jax.lax.map(lambda kept: jnp.where(kept[:, :, None], states, -jnp.inf).max(axis=1), by_text)
        return jnp.moveaxis(highest, 0, 1)
    weights, over = weigh(keep, start)
    # HIGHEST: no rounding to bfloat16
    sums = jnp.einsum("rsl,rld->rsd", jnp.asarray(weights, states.dtype), states, precision=jax.lax.Precision.HIGHEST)
    return sums / jnp.maximum(over, 1)[..., None]


@dataclass(frozen=True)
class Pooling:
    """One mode, or several whose vectors are concatenated; ``include_prompt=False`` leaves the prompt's tokens out
    (INSTRUCTOR, NV-Embed). Hashable, so it can be a static argument of a jitted function."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown or not self.modes:
            raise UserError(
                f"pooling mode {unknown[0] if unknown else None!r} is unknown; {', '.join(MODES)} are allowed"
            )

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

        ``prompt_lengths [B]``: tokens of each text's prompt, with the special tokens before it; required when the
        prompt is left out. A row without tokens gives zeros.
        """
        prompts = None if prompt_lengths is None else prompt_lengths[:, None]
        return self._pool(states, mask.astype(bool)[:, None, :], prompts)[:, 0]

    def packed(
        self,
        states: Float[Arrays, "R L D"],
        segments: Int[Arrays, "R L"],
        texts: int,
        prompt_lengths: Int[Arrays, "R S"] | None = None,
    ) -> Float[jax.Array, "R S _"]:
        """Rows of up to S = ``texts`` packed texts (``encoders.layout``) -> ``[R, S, len(modes)·D]`` float32, zeros
        where a row has fewer."""
        return self._pool(states, segments[:, None, :] == jnp.arange(1, texts + 1)[:, None], prompt_lengths)

    def _pool(self, states: Arrays, keep: Arrays, prompt_lengths: Arrays | None) -> jax.Array:
        """``keep [R, S, L]``: the tokens of each text."""
        keep = jnp.asarray(keep)
        start = jnp.argmax(keep, axis=-1)
        if not self.include_prompt:
            if prompt_lengths is None:
                raise ValueError("this pooling leaves the prompt out and requires prompt_lengths")
            keep = keep & (jnp.arange(keep.shape[-1]) >= (start + prompt_lengths)[..., None])
        states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
        vectors = jnp.concatenate([_combine(mode, states, keep, start) for mode in self.modes], axis=-1)
        return jnp.where(keep.any(axis=-1)[..., None], vectors, 0.0)
