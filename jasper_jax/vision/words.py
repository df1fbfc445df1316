"""The text encoder's word table: its path, and rows for new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.trees import flatten, unflatten

_PATHS = ("embeddings/word/embedding", "embeddings/embedding")


def word_path(params: Mapping[str, Any]) -> str:
    """The name of the word table's leaf among an encoder's."""
    names = flatten({"embeddings": params["embeddings"]})
    return next(path for path in _PATHS if path in names)


def word_table(params: Mapping[str, Any]) -> Any:
    """``[V, D]``."""
    return flatten({"embeddings": params["embeddings"]})[word_path(params)]


def with_vocabulary(encoder: Encoder, rows: int) -> Encoder:
    """The encoder with a word table of ``rows`` rows."""
    config = {**encoder.hf_config, "vocab_size": rows}
    return encoder if rows == encoder.vocab_size else encoder_from_config(config, encoder.family.model_type)


def grow_words(params: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """``params`` of an encoder with its word table extended to ``rows`` by the mean of the existing rows, so that other
    texts keep their vectors."""
    flat = flatten({"embeddings": params["embeddings"]})
    path = word_path(params)
    table = jnp.asarray(flat[path])
    if rows > len(table):
        mean = table.astype(jnp.float32).mean(axis=0).astype(table.dtype)
        flat[path] = jnp.concatenate([table, jnp.broadcast_to(mean, (rows - len(table), len(mean)))])
    return {**params, **unflatten(flat)}
