"""Which tokens a token may look at, said once for all forms of attention.

Segments, windows and direction are what a fused kernel takes; the dense mask made of them is what the plain forms take.
A batch has both: the mask is made once, before the layers, and where every layer runs a kernel nothing reads it, so
that the compiler leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.layout import Layout


class Seen(NamedTuple):
    """A token sees those of its own text, within a window, and none after itself where attention is ``causal``.

    ``segments [R, L]``: ``Layout.segments``. ``windows``: of each kind of layer, how far a token sees, None for all:
    itself and window - 1 tokens before it where attention is causal, window tokens to each side where it is not.
    ``masks [N, R, 1, 1 or L, L]``: text and window of each kind, True = may be looked at; what lies ahead is left to
    ``causal``. ``kind``: which of the N (traced: a layer's index decides), 0 where there is one.
    """

    segments: jax.Array
    masks: jax.Array
    windows: tuple[int | None, ...]
    causal: bool
    kind: jax.Array | int = 0

    @classmethod
    def of(cls, layout: Layout, windows: Sequence[int | None] = (None,), causal: bool = False) -> Seen:
        """For a batch. A window that covers every row is none; kinds that then see the same become one."""
        L = layout.segments.shape[1]
        kept = tuple(None if window is None or window >= L else window for window in windows)
        kept = kept[:1] if len(set(kept)) == 1 else kept
        masks = [layout.mask if window is None else _within(layout.mask, window, L, causal) for window in kept]
        return cls(layout.segments, jnp.stack(jnp.broadcast_arrays(*masks)), kept, causal)

    def at(self, kind: jax.Array) -> Seen:
        """For the layers of one kind."""
        return self if len(self.windows) == 1 else self._replace(kind=kind)

    @property
    def mask(self) -> jax.Array:
        """``[R, 1, 1 or L, L]``, without what ``causal`` says."""
        return pick(self.masks, self.kind)


def pick(stacked: jax.Array, kind: jax.Array | int) -> jax.Array:
    """``[N, ...]`` -> ``[...]`` of one kind; with N = 1 the only one."""
    if stacked.shape[0] == 1:
        return stacked[0]
    return jax.lax.dynamic_index_in_dim(stacked, kind, keepdims=False)


def _within(mask: jax.Array, window: int, L: int, causal: bool) -> jax.Array:
    ahead = np.arange(L)[None, :] - np.arange(L)[:, None]  # key's column minus query's
    near = ahead > -window if causal else np.abs(ahead) <= window
    return mask & jnp.asarray(near)[None, None]
