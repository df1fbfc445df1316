"""Token ids in rows -> one pooled vector per text: the encoder, then the pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.layout import segments_of
from jasper_jax.encoders.packing import RowDivision
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.parameters.sharding import ROWS, constrain, row_shards

Packed = Mapping[str, jax.Array]
"""The texts of a batch, packed into rows (``encoders.packing``): token ``ids [R, L]``; ``lengths [R, S]`` of the texts
of a row, 0 for none; ``slots [B]``, text b's row times S plus its place; ``prompts [R, S]``, lengths of the
prompts, where the pooling leaves them out."""


def encode_rows(
    encoder: Encoder,
    pooling: Pooling,
    params: Any,
    ids: Int[jax.Array, "R L"],
    segments: Int[jax.Array, "R L"],
    texts: int,
    prompts: Int[jax.Array, "R S"] | None = None,
    **options: Any,
) -> Float[jax.Array, "R S D"]:
    """Pooled vectors ``[R, S, D]`` float32 of rows of up to S = ``texts`` texts (``encoders.layout``).

    ``prompts``: tokens of each text's prompt, needed where the pooling leaves prompts out. ``options`` are those of
    ``Encoder.apply``: ``packed`` where a row may hold several texts, ``inserted``, ``compute_dtype``, and so on.
    """
    states = encoder.apply(params, ids, segments, **options)
    return pooling.packed(states, segments, texts, prompts)


def encode_packed(
    encoder: Encoder,
    pooling: Pooling,
    params: Any,
    texts: Packed,
    *,
    at_once: int | None = None,
    dropout_key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Pooled vectors ``[B, D]`` float32 of packed texts, in the batch's order; without ``slots`` ``[R·S, D]``, by row
    and place.

    Rows are sharded over the devices. Vectors are replicated; without ``slots`` they stay with their rows. ``at_once``:
    as in :func:`in_pieces`; ``options``: those of ``Encoder.apply``.
    """

    def encode(rows: Packed, key: jax.Array | None) -> jax.Array:
        ids, lengths = rows["ids"], rows["lengths"]
        segments, apply = segments_of(lengths, ids.shape[1]), {**options, "packed": True, "dropout_key": key}
        return encode_rows(encoder, pooling, params, ids, segments, lengths.shape[1], rows.get("prompts"), **apply)

    rows = {name: texts[name] for name in ("ids", "lengths", "prompts") if name in texts}
    by_row = in_pieces(encode, rows, dropout_key, at_once)
    vectors = by_row.reshape(-1, by_row.shape[-1])
    if "slots" not in texts:
        return constrain(vectors, ROWS)
    return constrain(constrain(vectors).at[texts["slots"]].get(unique_indices=True))


def in_pieces(
    encode: Callable[[Packed, jax.Array | None], jax.Array], rows: Packed, key: jax.Array | None, at_once: int | None
) -> jax.Array:
    """``encode(rows, key)`` in n pieces of at most ``at_once`` rows (``packing.RowDivision``) in turn, each recomputed
    in the backward pass: memory as for one piece. Row ``a · n + i`` is in piece i, so each piece has an equal share of
    every device's rows."""
    division = RowDivision(row_shards(jax.sharding.get_abstract_mesh()), at_once)
    pieces = division.pieces(len(next(iter(rows.values()))))
    rows = {name: constrain(x, ROWS) for name, x in rows.items()}
    if pieces == 1:
        return encode(rows, key)

    def cut(x: jax.Array) -> jax.Array:  # [R, ...] -> [pieces, R / pieces, ...]
        return constrain(jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0), None, ROWS)

    @jax.checkpoint
    def piece(number: jax.Array, rows: Packed) -> jax.Array:
        return encode(rows, None if key is None else jax.random.fold_in(key, number))

    numbers = jnp.arange(pieces, dtype=jnp.int32)
    out = jax.lax.map(lambda part: piece(*part), (numbers, {name: cut(x) for name, x in rows.items()}))
    return jnp.moveaxis(out, 0, 1).reshape(-1, *out.shape[2:])
