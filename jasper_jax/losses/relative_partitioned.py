"""Order violations counted by partition: O(P log P) work, O(P) memory, one loop body of fixed shape.

Put the pairs in the teacher's order and let each carry its position in the student's order. Every count the
loss needs is then "how many of the first x pairs have a position below y". The positions are split by their
highest bit, then each half by the next bit, and so on, keeping the teacher's order within a part (a wavelet
tree, built and read level by level). A query (x, y) follows the bits of y: where the bit is 1, all of the
sibling part counts; where it is 0, none of it. How x moves into a part is one look-up in a running count.

The positions are a permutation of 0..N-1 with N a power of two, so every part holds exactly half of its
parent, and the heads are simply the topmost parts of one long sequence: no part boundary is ever looked up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# Above this many padded pairs over all heads, heads go one after the other. That takes the memory of one head,
# keeps indices within int32 and the running counts within a CPU's cache: with 8 heads on two cores, as fast as
# one batched pass at B = 256, 1.2 times faster at 512 and 1.5 times at 1024.
MAX_BATCHED = 1 << 19


def argsort(keys: jax.Array, *, packed: bool) -> jax.Array:
    """Stable ascending order of `[..., P]` along the last axis, int32.

    With `packed`, a float32 key and its index travel as one 64-bit integer: XLA's CPU sort of plain integers
    is about four times faster than its sort of (key, payload) through a comparator. The 64-bit type exists
    inside this function only. Accelerators emulate it or sort payloads natively, so they leave it off.
    """
    axis = keys.ndim - 1
    index = lax.broadcasted_iota(jnp.int32, keys.shape, axis)
    if not packed or keys.dtype != jnp.float32:
        return lax.sort((keys, index), dimension=axis, is_stable=True, num_keys=1)[1]
    bits = lax.bitcast_convert_type(keys, jnp.int32)
    bits = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    with jax.enable_x64(True):
        high = lax.shift_left(lax.convert_element_type(bits, jnp.int64), lax.full(keys.shape, 32, jnp.int64))
        both = lax.sort(high | lax.convert_element_type(index, jnp.int64), dimension=axis, is_stable=False)
        return lax.convert_element_type(both, jnp.int32)


def partitioned(
    similarities: jax.Array,
    margin: jax.Array,
    order: jax.Array,
    place: jax.Array,
    first: jax.Array,
    last: jax.Array,
    *,
    packed_sort: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """For each pair of texts, how the violations it takes part in push its similarity.

    Args:
      similarities: student similarities `[H, P]` (H student vectors share one teacher).
      margin: `[H]`.
      order: pairs in the teacher's order `[P]`; `place` is its inverse.
      first: at each place of that order, the first place with the same teacher similarity; `last` is one past
        the final one. Both `[P]`.
      packed_sort: see `argsort`.

    Returns:
      `(push, lower)` as `jasper_jax.losses.relative_tiled.tiled` returns them, from the same comparisons.
    """
    heads, pairs = similarities.shape

    def count(similarities: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
        push, lower = _count(_move(similarities, order), margin, first, last, packed_sort)
        return _move(push, place), _move(lower, place)

    if heads > 1 and heads << pairs.bit_length() > MAX_BATCHED:
        push, lower = lax.map(lambda one: count(one[0][None], one[1][None]), (similarities, margin))
        return push[:, 0], lower[:, 0]
    return count(similarities, margin)


def _count(
    similarities: jax.Array, margin: jax.Array, first: jax.Array, last: jax.Array, packed_sort: bool
) -> tuple[jax.Array, jax.Array]:
    """`(push, lower)` of `[H, P]` similarities that stand in the teacher's order."""
    heads, pairs = similarities.shape
    levels = pairs.bit_length()
    size = 1 << levels  # a head's padded length, above P: a count of P is still below it
    index = lax.iota(jnp.int32, heads * size)
    base = index & -size  # where the head of each entry begins

    def widen(x: jax.Array, fill: float) -> jax.Array:  # [H, P] -> [H * size]
        return jnp.pad(x, ((0, 0), (0, size - pairs)), constant_values=fill).reshape(-1)

    student = widen(similarities, jnp.inf)
    floor = widen(similarities - margin[:, None], jnp.inf)
    sorted_to_index = argsort(student.reshape(heads, size), packed=packed_sort).reshape(-1) + base
    position = _scatter(index, sorted_to_index, index)  # in the student's order; within the head's range

    # For the pair p: how many similarities are at or below its floor. Those beyond violate against p.
    at_floor = _search(_gather(student, sorted_to_index), floor, base, levels)
    # For the pair q: how many floors are below its similarity. From the numbers just found, not from a second
    # comparison, so that a violation is one for both of its pairs or for neither.
    counted = (index & (size - 1)) < pairs
    floors = jnp.zeros_like(index).at[at_floor].add(counted.astype(jnp.int32), mode="promise_in_bounds")
    floors_below = jnp.cumsum(floors, dtype=jnp.int32) - pairs * (index >> levels)
    below_student = base + jnp.where(counted, _gather(floors_below, position), 0)

    def every_head(x: jax.Array) -> jax.Array:  # [P] -> [H * size]
        return widen(jnp.broadcast_to(x.astype(jnp.int32), (heads, pairs)), 0)

    # Among pairs the teacher puts lower: those at or below the floor. Among pairs up to the same teacher
    # similarity: those whose floor is below. What is asked for are the complements.
    before = jnp.stack([every_head(first), every_head(last)])
    within = _count_before(position, before, jnp.stack([at_floor, below_student]), levels)
    within = within.reshape(2, heads, size)[:, :, :pairs]
    lower = first - within[0]
    higher = (below_student - base).reshape(heads, size)[:, :pairs] - within[1]
    return higher - lower, lower


def _search(sorted_values: jax.Array, bounds: jax.Array, base: jax.Array, levels: int) -> jax.Array:
    """Binary search: `base` plus how many of the head's sorted values are `<=` each bound."""

    def halve(level: jax.Array, found: jax.Array) -> jax.Array:
        half = lax.shift_right_logical(jnp.int32(1 << (levels - 1)), jnp.int32(level))
        return found + jnp.where(_gather(sorted_values, found + half - 1) <= bounds, half, 0)

    return lax.fori_loop(0, levels, halve, base)


def _count_before(position: jax.Array, before: jax.Array, bound: jax.Array, levels: int) -> jax.Array:
    """How many of the head's first `before` entries have a position below `bound`.

    `position` `[H * size]` is a permutation within each head, and like `bound` carries the head's base;
    `before` and the result are relative to it, of any shape `[..., H * size]`.
    """
    index = lax.iota(jnp.int32, position.shape[0])

    def split(level: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]):
        position, before, count = state
        half = lax.shift_right_logical(jnp.int32(1 << (levels - 1)), jnp.int32(level))
        part = -2 * half  # the bits that name a part
        low = ((position & half) == 0).astype(jnp.int32)
        lows = jnp.cumsum(low, dtype=jnp.int32) - low  # over all parts: each holds exactly `half`

        start = bound & part
        lows_before = _gather(lows, start + before) - (start >> 1)
        goes_high = (bound & half) != 0
        count = count + jnp.where(goes_high, lows_before, 0)
        before = jnp.where(goes_high, before - lows_before, lows_before)

        start = index & part
        lows = lows - (start >> 1)
        target = start + jnp.where(low == 1, lows, half + (index - start) - lows)
        return _scatter(position, target, position), before, count

    return lax.fori_loop(0, levels, split, (position, before, jnp.zeros_like(before)))[2]


def _move(x: jax.Array, index: jax.Array) -> jax.Array:
    """The columns `index` of `[H, P]`."""
    return x.at[:, index].get(mode="promise_in_bounds")


def _gather(x: jax.Array, index: jax.Array) -> jax.Array:
    return x.at[index].get(mode="promise_in_bounds")


def _scatter(like: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    """`values` moved to the places `index`, a permutation."""
    return jnp.zeros_like(like).at[index].set(values, mode="promise_in_bounds", unique_indices=True)
