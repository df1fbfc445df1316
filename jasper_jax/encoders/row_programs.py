"""The compiled programs of an embedder: rows of packed texts -> pooled vectors -> output vectors.

A program belongs to a shape (rows, row length). New shapes are compiled together, in threads, before the first batch.
Parameters are arguments of the programs, never constants in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jasper_jax.encoders.batch_shapes import texts_per_row
from jasper_jax.encoders.dense import dense
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.packed import encode_packed
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.losses import normalize
from jasper_jax.parameters.sharding import row_sharding

Shape = tuple[int, int]
"""(rows, row length)."""

pooled_rows = jax.jit(encode_packed, static_argnames=("encoder", "pooling", "compute_dtype"))
"""Rows as ``encoders.packed.Packed`` without ``slots`` -> ``[R·S, D]``, in the mesh of ``jax.set_mesh``."""


@partial(jax.jit, static_argnames=("activations", "normalized"))
def output_vectors(weights: Any, activations: tuple[str, ...], normalized: bool, x: jax.Array) -> jax.Array:
    """Pooled vectors ``[n, D]`` through the Dense steps -> ``[n, E]``."""
    x = dense(x, weights, activations)
    return normalize(x) if normalized else x


def abstract_rows(shape: Shape, mesh: Mesh, *, prompts: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch for :func:`pooled_rows`; ``prompts``: with the lengths of prompts."""
    rows, length = shape

    def array(columns: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, columns), jnp.int32, sharding=row_sharding(mesh))

    texts = texts_per_row(length)
    names = {"ids": length, "lengths": texts, **({"prompts": texts} if prompts else {})}
    return {name: array(columns) for name, columns in names.items()}


def lower_rows(
    encoder: Encoder, pooling: Pooling, params: Any, shape: Shape, mesh: Mesh, compute_dtype: str
) -> jax.stages.Lowered:
    """:func:`pooled_rows` for ``shape``; ``params`` are arrays, or shapes with shardings."""
    rows = abstract_rows(shape, mesh, prompts=not pooling.include_prompt)
    with jax.set_mesh(mesh):
        return pooled_rows.lower(encoder, pooling, params, rows, inserted=None, compute_dtype=compute_dtype)


def compile_shapes(
    shapes: Iterable[Shape],
    lower: Callable[[Shape], jax.stages.Lowered],
    output: tuple[Any, tuple[str, ...], bool] | None,
    mesh: Mesh,
) -> None:
    """Compile the programs of ``shapes`` in threads, so that later calls find them. ``lower`` as :func:`lower_rows`;
    ``output``: the first arguments of :func:`output_vectors`, None where pooled vectors are the result."""

    def compile_one(shape: Shape) -> None:
        pooled = lower(shape).compile()
        if output is not None:
            x = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                pooled.out_info,
                pooled.output_shardings,
            )
            with jax.set_mesh(mesh):
                output_vectors.lower(*output, x).compile()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_one, shapes))
