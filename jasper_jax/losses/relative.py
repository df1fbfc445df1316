"""The exact relative-similarity loss (equation 3 of arXiv 2412.19048) without its P² table.

A batch of B texts has P = B(B-1)/2 pairs, and the loss compares all pairs of pairs:

    mean over {p, q}, t_p > t_q, of max(0, s_q - s_p + margin)

It is piecewise linear in the student similarities s. With V violations (comparisons above 0) in all, and
g_p = those in which p is the worse pair (q above) less those in which it is the better one, the sum is
`Σ_p g_p s_p + margin · V`, and g is its gradient. So the loss *is* two integers per pair, and these can be
counted without writing the comparisons out. Three exact forms do that: `relative_tiled`, `relative_merged` and
`relative_partitioned`.

The teacher's pairs are ranked once per batch (`pair_order`); every head and nested dimension that has this
teacher then is a row of one batched call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jasper_jax.losses.relative_merged import merged
from jasper_jax.losses.relative_partitioned import argsort, partitioned
from jasper_jax.losses.relative_tiled import CPU_COLUMNS, tiled
from jasper_jax.parameters.sharding import devices

METHODS = ("auto", "tiled", "merged", "partitioned")

# On CPU and GPU `auto` takes the tiled form up to this many pairs, the partitioned one above. CPU: measured on two
# cores with 1 and 8 student vectors: tiled 1.2 to 1.6 times faster at P = 1128 (B = 48), partitioned 1.2 to 1.5 times
# at 2016 (B = 64), 5 to 7 times at 8128 and 50 times at 130816. GPU: an estimate for one device, not measured; the
# devices of a mesh share the comparisons out, while each does all of the partitioned form, so there it is this bound
# times their number. `scripts/bench/relative.py` measures both.
TILED_UP_TO = {"cpu": 1 << 10, "gpu": 1 << 17}

# On TPU `auto` takes the tiled form up to this many comparisons (P²) a device and head, which take a millisecond by
# the compiler's estimate (docs/results/relative-chips.md), and the merged form above. B = 128 is below it on one chip,
# B = 512 on 256. The partitioned form is for other types than float32, which the kernel does not take.
TILED_COMPARISONS = 1 << 26

DIVIDED_FROM = 1 << 12
"""Pairs from which on the devices of a mesh share the comparisons out (B = 92). Below, each makes all of them, at most
2^24: tens of microseconds on an accelerator, which is what collecting the counts would take."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["similarities", "order", "place", "first", "last"],
    meta_fields=[],
)
@dataclass(frozen=True)
class PairOrder:
    """A teacher's order of the P pairs of a batch; every field is `[P]`.

    `similarities` are the teacher's, pair by pair. `order` lists the pairs by rising similarity, `place` is
    its inverse. `first` and `last` bound, at each place of that order, the group of pairs with the same
    similarity: `first <= place < last`.
    """

    similarities: jax.Array
    order: jax.Array
    place: jax.Array
    first: jax.Array
    last: jax.Array


def pairs(matrix: jax.Array) -> jax.Array:
    """The P = B(B-1)/2 entries off the diagonal of symmetric `[..., B, B]`, each once, as `[..., P]`.

    The order of the pairs is fixed by B: (i, i+1), then (i, i+2), ..., modulo B. Reading along these wrapped
    diagonals takes slices only, where the upper triangle row by row would take a gather and an index table.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix: expected square [..., B, B], got {matrix.shape}")
    *lead, size, _ = matrix.shape
    # Row i of the skewed matrix starts at its diagonal: entry d is matrix[i, (i + d) % B].
    wide = jnp.concatenate([matrix, matrix], axis=-1).reshape(*lead, 2 * size * size)
    skewed = jnp.pad(wide, [(0, 0)] * len(lead) + [(0, size)]).reshape(*lead, size, 2 * size + 1)
    whole = jnp.swapaxes(skewed[..., 1 : (size + 1) // 2], -1, -2).reshape(*lead, -1)
    if size % 2 or size == 0:
        return whole
    return jnp.concatenate([whole, skewed[..., : size // 2, size // 2]], axis=-1)


def pair_order(similarities: jax.Array) -> PairOrder:
    """Rank teacher similarities `[P]`. Costs one sort; no gradient flows through it."""
    if similarities.ndim != 1:
        raise ValueError(f"similarities: expected [P], got {similarities.shape}")
    return _pair_order(lax.stop_gradient(similarities))


@jax.jit
def _pair_order(similarities: jax.Array) -> PairOrder:
    count = similarities.shape[0]
    index = lax.iota(jnp.int32, count)
    if count == 0:
        return PairOrder(similarities, index, index, index, index)
    order = lax.platform_dependent(
        similarities, cpu=partial(argsort, packed=True), default=partial(argsort, packed=False)
    )
    place = jnp.zeros_like(order).at[order].set(index, mode="promise_in_bounds", unique_indices=True)
    ranked = similarities.at[order].get(mode="promise_in_bounds")
    begins = jnp.concatenate([jnp.zeros(1, bool), ranked[1:] != ranked[:-1]])
    group = jnp.cumsum(begins, dtype=jnp.int32)
    starts = jnp.full(count + 1, count, jnp.int32).at[group].min(index, mode="promise_in_bounds")
    return PairOrder(similarities, order, place, first=starts[group], last=starts[group + 1])


def relative_from_similarities(
    similarities: jax.Array, order: PairOrder, margin: float | jax.Array = 0.015, method: str = "auto"
) -> jax.Array:
    """The relative-similarity loss of H student vectors against one teacher (equation 3), in one call.

    Args:
      similarities: cosine similarities `[H, P]` of the student's pairs, in the order of `pairs`.
      order: the teacher's, from `pair_order`.
      margin: of the hinge, in units of cosine similarity; one number or `[H]`.
      method: `"tiled"`, `"merged"` (float32 alone), `"partitioned"`, or `"auto"`, which chooses by platform and size.

    Returns:
      `[H]`, the mean over the P(P-1)/2 pairs of pairs. Tied pairs of the teacher add 0 and count in the mean.
      With fewer than two pairs it is 0 with zero gradient. A NaN on either side makes it NaN.

    Raises:
      ValueError: the shapes do not fit, the method is unknown, or it does not take the type.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
    if similarities.ndim != 2 or similarities.shape[1:] != order.similarities.shape:
        raise ValueError(
            f"similarities: expected [H, P] with the P of the teacher's order, got {similarities.shape} and "
            f"an order of {order.similarities.shape}"
        )
    heads, count = similarities.shape
    if method == "merged" and similarities.dtype != jnp.float32:
        raise ValueError(f"method: merged takes float32 similarities, got {similarities.dtype}; take partitioned")
    margin = jnp.asarray(margin, similarities.dtype)
    if margin.ndim and margin.shape != (heads,):
        raise ValueError(f"margin: expected a number or [H], got {margin.shape} for {similarities.shape}")
    if count < 2 or heads == 0:
        return jnp.zeros((heads,), similarities.dtype)
    return _mean_hinge(similarities, jnp.broadcast_to(margin, (heads,)), order, method)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mean_hinge(similarities: jax.Array, margin: jax.Array, order: PairOrder, method: str) -> jax.Array:
    return _value_and_push(similarities, margin, order, method)[0]


def _forward(similarities: jax.Array, margin: jax.Array, order: PairOrder, method: str):
    value, push, violations = _value_and_push(similarities, margin, order, method)
    return value, (push, violations)


def _backward(method: str, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    push, violations = saved
    scale = cotangent / comparisons(push.shape[1])
    return push * scale[:, None], violations * scale, None


_mean_hinge.defvjp(_forward, _backward)


@partial(jax.jit, static_argnames="method")
def _value_and_push(
    similarities: jax.Array, margin: jax.Array, order: PairOrder, method: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Value `[H]`, the counts g `[H, P]` and the number of violations `[H]`, in the similarities' type."""
    count = similarities.shape[1]
    # Chosen for the platform the program is lowered for, which need not be the one it is traced on.
    push, lower = lax.platform_dependent(
        similarities,
        margin,
        order,
        cpu=_form("cpu", method, count, similarities.dtype),
        tpu=_form("tpu", method, count, similarities.dtype),
        default=_form("gpu", method, count, similarities.dtype),
    )
    return mean_hinge(similarities, order.similarities, margin, push, lower, count)


def mean_hinge(
    similarities: jax.Array, teacher: jax.Array, margin: jax.Array, push: jax.Array, lower: jax.Array, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What follows from the two integers of each pair: value `[H]`, the counts g, and the number of violations `[H]`.

    Args:
      similarities: `[H, ...]`, 0 where there is no pair; `push` and `lower` are of the same shape.
      teacher: of any shape.
      margin: `[H]`.
      count: P.
    """
    axes = tuple(range(1, similarities.ndim))
    push, lower = push.astype(similarities.dtype), lower.astype(similarities.dtype)
    violations = jnp.sum(lower, axis=axes)
    # The g of a row add up to 0, so a shift of s changes nothing but the rounding.
    centred = similarities - jnp.sum(similarities, axis=axes, keepdims=True) / count
    value = jnp.maximum(jnp.sum(push * centred, axis=axes) + margin * violations, 0) / comparisons(count)
    return jnp.where(jnp.any(jnp.isnan(teacher)), jnp.nan, value), push, violations


def _form(platform: str, method: str, count: int, dtype: Any):
    on_cpu = platform == "cpu"
    if method == "auto":
        method = fastest_form(platform, count, dtype)

    def run_tiled(similarities: jax.Array, margin: jax.Array, order: PairOrder):
        columns = CPU_COLUMNS if on_cpu else None
        divided = devices() > 1 and count >= DIVIDED_FROM
        return tiled(similarities, margin, order.similarities, columns=columns, divided=divided)

    def run_partitioned(similarities: jax.Array, margin: jax.Array, order: PairOrder):
        places = (order.order, order.place, order.first, order.last)
        return partitioned(similarities, margin, *places, packed_sort=on_cpu)

    def run_merged(similarities: jax.Array, margin: jax.Array, order: PairOrder):
        return merged(similarities, margin, order.similarities, kernel=platform == "tpu")

    return {"tiled": run_tiled, "merged": run_merged, "partitioned": run_partitioned}[method]


def fastest_form(platform: str, count: int, dtype: Any) -> str:
    """The form that `auto` takes for `count` pairs on the current mesh."""
    if platform != "tpu":
        sharing = 1 if platform == "cpu" else devices()  # Simulated devices share the same cores.
        return "tiled" if count <= TILED_UP_TO[platform] * sharing else "partitioned"
    if count**2 <= TILED_COMPARISONS * devices():
        return "tiled"
    return "merged" if dtype == jnp.float32 else "partitioned"


def comparisons(count: int) -> float:
    """Of `count` pairs, the pairs of pairs."""
    return count * (count - 1) / 2
