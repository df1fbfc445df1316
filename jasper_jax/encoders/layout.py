"""Where the texts stand in the rows of a batch: one a row with padding, or several packed into each row.

One integer array says it: 0 is padding, s ≥ 1 the s-th text of the row, in adjoining columns. With one text a row it is
the usual mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def segments_of(lengths: jax.Array, columns: int) -> jax.Array:
    """``lengths [R, S]``, the tokens of each text of a row, from the first column on without gaps -> ``[R, L]``
    segments, L = ``columns``."""
    ends = jnp.cumsum(lengths, axis=1)
    column = jnp.arange(columns, dtype=ends.dtype)
    number = 1 + (ends[:, None, :] <= column[:, None]).sum(axis=2, dtype=jnp.int32)
    return jnp.where(column < ends[:, -1:], number, 0)


class Inserted(NamedTuple):
    """Vectors in place of word embeddings: ``vectors [N, D]``, and at each column ``which [R, L]`` of them stands
    there, -1 where a word does."""

    vectors: jax.Array
    which: jax.Array


class Layout(NamedTuple):
    """``segments [R, L]`` int32 of a batch of R rows; ``packed`` tells whether a row may hold several texts.

    Packed texts do not see each other, and their positions start anew; a text's states are those it has alone.
    ``inserted``: what stands among the words (image tokens); positions, types and norms apply to it as to words.
    """

    segments: jax.Array
    packed: bool
    inserted: Inserted | None = None

    def words(self, table: Callable[[jax.Array], jax.Array], token_ids: jax.Array) -> jax.Array:
        """Input embeddings ``[R, L, D]``: ``table(token_ids)``, and what is inserted."""
        x = table(token_ids)
        if self.inserted is None:
            return x
        vectors, which = self.inserted
        return jnp.where(which[..., None] >= 0, vectors.astype(x.dtype)[jnp.maximum(which, 0)], x)

    @property
    def keep(self) -> jax.Array:
        """``[R, L]`` bool: where a token stands."""
        return self.segments > 0

    @property
    def mask(self) -> jax.Array:
        """Which keys a query may look at, True = may: ``[R, 1, 1, L]``, packed ``[R, 1, L, L]``."""
        if not self.packed:
            return self.keep[:, None, None, :]
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return (same & self.keep[:, None, :])[:, None]

    @property
    def columns(self) -> jax.Array:
        """A token's position in its text ``[R, L]``; with one text a row its column, padding before it counted, as
        transformers does: ``[1, L]``."""
        if not self.packed:
            return jnp.arange(self.segments.shape[1], dtype=jnp.int32)[None]
        return jnp.where(self.keep, self.count(jnp.ones_like(self.segments)) - 1, 0)

    def count(self, flags: jax.Array) -> jax.Array:
        """``[R, L]`` 0 or 1 -> how many ones a text has up to and with each column."""
        total = jnp.cumsum(flags, axis=1)
        if not self.packed:
            return total
        begins = jnp.diff(self.segments, axis=1, prepend=-1) != 0
        before = jax.lax.cummax(jnp.where(begins, total - flags, 0), axis=1)
        return total - before


def offset_positions(token_ids: jax.Array, layout: Layout, padding: int) -> jax.Array:
    """``[R, L]``: tokens count from ``padding`` + 1, wherever padding stands; padding has position ``padding``
    (the RoBERTas and MPNet)."""
    real = (token_ids != padding).astype(jnp.int32)
    return layout.count(real) * real + padding
