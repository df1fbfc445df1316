"""The positions of texts in the rows of a batch (one per row with padding, or several packed), and what tokens see.

Segments are one integer array: 0 is padding, s ≥ 1 the s-th text of the row, in adjoining columns. With one text per
row it is the usual mask. Fused kernels take segments, windows and direction; the plain forms of attention take a dense
mask. ``Seen`` has both: the compiler drops the mask where nothing reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def segments_of(lengths: jax.Array, columns: int) -> jax.Array:
    """``lengths [R, S]``, the tokens of each text of a row, from the first column on without gaps -> ``[R, L]``
    segments, L = ``columns``."""
    ends = jnp.cumsum(lengths, axis=1)
    column = jnp.arange(columns, dtype=ends.dtype)
    number = 1 + (ends[:, None, :] <= column[:, None]).sum(axis=2, dtype=jnp.int32)
    return jnp.where(column < ends[:, -1:], number, 0)


class Inserted(NamedTuple):
    """Vectors that replace word embeddings: ``vectors [N, D]``, and for each column ``which [R, L]`` of them, -1 for a
    word."""

    vectors: jax.Array
    which: jax.Array


class Layout(NamedTuple):
    """``segments [R, L]`` int32 of a batch of R rows; ``packed``: a row may hold several texts.

    Packed texts do not see each other and each starts at position 0, so a text's states are those it has alone.
    ``inserted``: image tokens among the words; positions, types and norms apply to them too.
    """

    segments: jax.Array
    packed: bool
    inserted: Inserted | None = None

    def words(self, table: Callable[[jax.Array], jax.Array], token_ids: jax.Array) -> jax.Array:
        """Input embeddings ``[R, L, D]``: ``table(token_ids)``, and the inserted vectors."""
        x = table(token_ids)
        if self.inserted is None:
            return x
        vectors, which = self.inserted
        return jnp.where(which[..., None] >= 0, vectors.astype(x.dtype)[jnp.maximum(which, 0)], x)

    @property
    def keep(self) -> jax.Array:
        """``[R, L]`` bool: True at tokens."""
        return self.segments > 0

    @property
    def mask(self) -> jax.Array:
        """True at the keys that a query sees: ``[R, 1, 1, L]``, packed ``[R, 1, L, L]``."""
        if not self.packed:
            return self.keep[:, None, None, :]
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return (same & self.keep[:, None, :])[:, None]

    @property
    def columns(self) -> jax.Array:
        """A token's position in its text ``[R, L]``; with one text per row its column ``[1, L]``, as transformers."""
        if not self.packed:
            return jnp.arange(self.segments.shape[1], dtype=jnp.int32)[None]
        return jnp.where(self.keep, self.count(jnp.ones_like(self.segments)) - 1, 0)

    def count(self, flags: jax.Array) -> jax.Array:
        """``[R, L]`` 0 or 1 -> the running sum within each text."""
        total = jnp.cumsum(flags, axis=1)
        if not self.packed:
            return total
        begins = jnp.diff(self.segments, axis=1, prepend=-1) != 0
        before = jax.lax.cummax(jnp.where(begins, total - flags, 0), axis=1)
        return total - before


def offset_positions(token_ids: jax.Array, layout: Layout, padding: int) -> jax.Array:
    """``[R, L]``: tokens count from ``padding`` + 1, padding has position ``padding`` (the RoBERTas and MPNet)."""
    real = (token_ids != padding).astype(jnp.int32)
    return layout.count(real) * real + padding


class Seen(NamedTuple):
    """A token sees its own text, within a window, and nothing after itself where attention is ``causal``.

    ``segments [R, L]``: ``Layout.segments``. ``windows``: one per kind of layer, None for no limit: a causal token sees
    itself and window - 1 tokens before it; otherwise window tokens to each side. ``masks [N, R, 1, 1 or L, L]``: text
    and window of each kind, True = seen, without ``causal``. ``kind``: which of the N (traced), 0 where there is one.
    """

    segments: jax.Array
    masks: jax.Array
    windows: tuple[int | None, ...]
    causal: bool
    kind: jax.Array | int = 0

    @classmethod
    def of(cls, layout: Layout, windows: Sequence[int | None] = (None,), causal: bool = False) -> Seen:
        """For a batch. A window as long as the rows becomes None; kinds that are then equal become one."""
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
        """``[R, 1, 1 or L, L]``, without ``causal``."""
        return pick(self.masks, self.kind)


def pick(stacked: jax.Array, kind: jax.Array | int) -> jax.Array:
    """``[N, ...]`` -> ``[...]`` of one kind; the only one where N = 1."""
    if stacked.shape[0] == 1:
        return stacked[0]
    return jax.lax.dynamic_index_in_dim(stacked, kind, keepdims=False)


def _within(mask: jax.Array, window: int, L: int, causal: bool) -> jax.Array:
    ahead = np.arange(L)[None, :] - np.arange(L)[:, None]  # key's column minus query's
    near = ahead > -window if causal else np.abs(ahead) <= window
    return mask & jnp.asarray(near)[None, None]
