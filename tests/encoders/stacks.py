"""A model's layers in two stacks, as a stage that trains the last of them holds them."""

from __future__ import annotations

import jax

from jasper_jax.encoders.tower import Params, depth


def split_layers(params: Params, k: int) -> Params:
    """``params``, of one stack, with its layers in two: all but the last k, and the last k (either may be empty)."""
    stack = params["layers"]
    n = depth(stack) - k
    first = jax.tree.map(lambda leaf: leaf[:n], stack)
    last = jax.tree.map(lambda leaf: leaf[n:], stack)
    return {**params, "layers": (first, last)}
