"""The relative loss of similarity matrices whose rows lie over the devices of a mesh.

No device holds all pairs: it takes those of its own rows, counts with the others (`relative_merged`), and has the
gradient of its own rows. Row i has the pairs (i, i+1) to (i, i+B/2), modulo B; for even B, half of the last are the
other half's, and count for nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jasper_jax.losses.relative import (
    PairOrder,
    comparisons,
    fastest_form,
    mean_hinge,
    pairs,
    relative_from_similarities,
)
from jasper_jax.losses.relative_merged import count_violations, sharing
from jasper_jax.parameters.sharding import constrain


def by_rows(texts: int, dtype: Any) -> bool:
    """Whether the devices share similarity matrices `[B, B]` by rows: those that a TPU counts by merging, where the
    devices can share them."""
    axes, parts = sharing()
    return bool(axes) and texts % parts == 0 and fastest_form("tpu", _pairs(texts), dtype) == "merged"


def relative_from_matrices(
    similarities: jax.Array, teacher: jax.Array, order: PairOrder, margin: jax.Array
) -> jax.Array:
    """The relative-similarity loss `[H]` of matrices `[H, B, B]` against a teacher's `[B, B]`, with its order of pairs
    and margins `[H]`; as `relative_from_similarities`."""

    def of_pairs(similarities: jax.Array, margin: jax.Array) -> jax.Array:
        return relative_from_similarities(pairs(constrain(similarities)), order, margin)

    if not by_rows(teacher.shape[0], similarities.dtype):
        return of_pairs(similarities, margin)

    def rows(similarities: jax.Array, margin: jax.Array) -> jax.Array:
        return relative_by_rows(similarities, lax.stop_gradient(teacher), margin, True)

    return lax.platform_dependent(similarities, margin, tpu=rows, default=of_pairs)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def relative_by_rows(similarities: jax.Array, teacher: jax.Array, margin: jax.Array, kernel: bool) -> jax.Array:
    """The relative loss of H student vectors against one teacher (equation 3).

    Args:
      similarities: cosine similarities `[H, B, B]`, float32; B a multiple of the devices, at least 3.
      teacher: the teacher's `[B, B]`.
      margin: `[H]`.
      kernel: merge in the kernel for TPU.

    Returns:
      `[H]`, as `jasper_jax.losses.relative.relative_from_similarities` of the pairs.
    """
    return _forward(similarities, teacher, margin, kernel)[0]


def _forward(similarities: jax.Array, teacher: jax.Array, margin: jax.Array, kernel: bool):
    axes, _ = sharing()
    in_specs = PartitionSpec(None, axes), PartitionSpec(axes), PartitionSpec()
    # check_vma: kernels do not declare over which axes their results vary.
    run = jax.shard_map(partial(_count, kernel), in_specs=in_specs, out_specs=in_specs[0], check_vma=False)
    own, push, lower = run(similarities, teacher, margin)
    value, push, violations = mean_hinge(own, teacher, margin, push, lower, _pairs(teacher.shape[0]))
    return value, (push, violations)


def _backward(kernel: bool, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    push, violations = saved
    texts = push.shape[1]
    axes, _ = sharing()

    def spread(push: jax.Array, scale: jax.Array) -> jax.Array:  # own rows of the matrices
        rows = jax.ShapeDtypeStruct((*push.shape[:2], texts), push.dtype)
        (matrices,) = jax.linear_transpose(_own_pairs, rows)(push * scale[:, None, None])
        return matrices

    of_rows = PartitionSpec(None, axes)
    run = jax.shard_map(spread, in_specs=(of_rows, PartitionSpec()), out_specs=of_rows, check_vma=False)
    scale = cotangent / comparisons(_pairs(texts))
    return run(push, scale), None, violations * scale


relative_by_rows.defvjp(_forward, _backward)


def _count(
    kernel: bool, similarities: jax.Array, teacher: jax.Array, margin: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """On each device, of its pairs: similarities, 0 where there is no pair, and `(push, lower)` as
    `jasper_jax.losses.relative_tiled.tiled` returns them; each `[H, rows, B/2]`."""
    axes, parts = sharing()
    heads, rows, texts = similarities.shape
    student, target = _own_pairs(similarities), _own_pairs(teacher)
    row = lax.axis_index(axes) * rows + lax.broadcasted_iota(jnp.int32, target.shape, 0)
    distance = 1 + lax.broadcasted_iota(jnp.int32, target.shape, 1)
    pair = (2 * distance < texts) | (row < distance)
    lower, higher = (
        count.reshape(student.shape)
        for count in count_violations(
            jnp.where(pair, student, jnp.inf).reshape(heads, -1),
            margin,
            jnp.where(pair, target, jnp.inf).reshape(-1),
            axes,
            parts,
            kernel,
        )
    )
    return jnp.where(pair, student, 0), higher - lower, lower


def _own_pairs(matrix: jax.Array) -> jax.Array:
    """Rows `[..., rows, B]` of a device -> `[..., rows, B/2]`, entry d - 1 of row i being that of (i, i + d)."""
    axes, _ = sharing()
    *lead, rows, texts = matrix.shape
    wide = jnp.concatenate([matrix, matrix], axis=-1)
    # Row k of the block is skewed by k, after all were turned by the first row's number.
    turned = lax.dynamic_slice_in_dim(wide, lax.axis_index(axes) * rows, texts, axis=-1)
    flat = jnp.concatenate([turned, turned], axis=-1).reshape(*lead, 2 * rows * texts)
    skewed = jnp.pad(flat, [(0, 0)] * len(lead) + [(0, rows)]).reshape(*lead, rows, 2 * texts + 1)
    return skewed[..., 1 : texts // 2 + 1]


def _pairs(texts: int) -> int:
    """P."""
    return texts * (texts - 1) // 2
