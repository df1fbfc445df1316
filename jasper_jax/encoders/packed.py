"""Texts packed into rows -> one pooled vector each: the one place where the encoder and the pooling meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.layout import segments_of
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.parameters.sharding import ROWS, constrain

Packed = Mapping[str, jax.Array]
"""The texts of a batch, packed into rows (``jasper_jax.encoders.packing``): ``ids [R, L]`` tokens; ``lengths [R, S]``
tokens of each text of a row, 0 where there is none; ``slots [B]`` where text b is, its row times S plus its place;
``prompts [R, S]`` tokens of each text's prompt, where the pooling leaves prompts out."""


def encode_packed(
    encoder: Encoder,
    pooling: Pooling,
    params: Any,
    texts: Packed,
    *,
    pieces: int = 1,
    dropout_key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Pooled vectors ``[B, D]`` float32 of packed texts, in the batch's order; ``options`` are ``Encoder.apply``'s.

    Rows lie over the devices; the vectors are repeated on all of them, being small. ``pieces`` takes so many parts of
    the rows one after another, each computed again in the backward pass: its memory is that of one part.
    """

    def encode(rows: Packed, key: jax.Array | None) -> jax.Array:
        segments = segments_of(rows["lengths"], rows["ids"].shape[1])
        states = encoder.apply(params, rows["ids"], segments, packed=True, dropout_key=key, **options)
        return pooling.packed(states, segments, rows["lengths"].shape[1], rows.get("prompts"))

    rows = {name: constrain(texts[name], ROWS) for name in ("ids", "lengths", "prompts") if name in texts}
    by_row = encode(rows, dropout_key) if pieces == 1 else _in_pieces(encode, rows, dropout_key, pieces)
    vectors = constrain(by_row.reshape(-1, by_row.shape[-1]))
    return constrain(vectors.at[texts["slots"]].get(unique_indices=True))


def _in_pieces(
    encode: Callable[[Packed, jax.Array | None], jax.Array], rows: Packed, key: jax.Array | None, pieces: int
) -> jax.Array:
    """``encode`` over ``pieces`` parts of the rows: row ``a · pieces + i`` is in part i, so that each part has its
    share of every device's rows."""

    def cut(x: jax.Array) -> jax.Array:  # [R, ...] -> [pieces, R / pieces, ...]
        return constrain(jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), None, ROWS)

    @jax.checkpoint
    def piece(number: jax.Array, rows: Packed) -> jax.Array:
        return encode(rows, None if key is None else jax.random.fold_in(key, number))

    numbers = jnp.arange(pieces, dtype=jnp.int32)
    out = jax.lax.map(lambda part: piece(*part), (numbers, {name: cut(x) for name, x in rows.items()}))
    return jnp.moveaxis(out, 0, 1).reshape(-1, *out.shape[2:])
