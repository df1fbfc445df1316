"""Layers are stored stacked, every leaf ``[N, ...]``, and run with one ``lax.scan`` per stack.

``params["layers"]`` is one stack, or a tuple of stacks run one after another: a stage that trains the last k layers
holds a frozen and a trainable one. The canonical form (names, checkpoints, export) is one stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.parameters.sharding import sum_in_steps

Params = dict[str, Any]


def stacks_of(layers: Any) -> tuple[Params, ...]:
    """The stacks of ``params["layers"]``, whichever form it has."""
    return tuple(layers) if isinstance(layers, (tuple, list)) else (layers,)


def depth(stack: Params) -> int:
    """Number of layers in a stack: the leading axis of its leaves."""
    return jax.tree.leaves(stack)[0].shape[0]


def scan_layers(
    layer: Callable[[Params, jax.Array, jax.Array], jax.Array],
    layers: Any,
    x: jax.Array,
    *,
    remat: bool = False,
    unroll: bool = False,
) -> jax.Array:
    """``x`` through every layer: ``layer(params of one layer, x, index of the layer)`` -> ``x``.

    The index counts from 0 over all stacks. With ``remat`` the backward pass keeps only each layer's input and
    computes the rest again. ``unroll`` writes the layers out: the backward pass of a loop copies what it keeps of each
    layer into stacked arrays and out again, a fifth of a training step on CPU; the program grows with the depth.
    """

    def step(x: jax.Array, item: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        return layer(sum_in_steps(item[0]), x, item[1]), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)  # inside a scan nothing can be merged across steps
    first = 0
    for stack in stacks_of(layers):
        n = depth(stack)
        x, _ = jax.lax.scan(step, x, (stack, jnp.arange(first, first + n, dtype=jnp.int32)), unroll=unroll)
        first += n
    return x
