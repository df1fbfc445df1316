"""Freezing as a partition of the parameters, not a mask on updates.

A stage's ``train`` patterns divide the canonical parameters (one stack of layers) into a trained and a frozen part.
The gradient is taken with respect to the trained part alone, so a frozen layer below it has no backward pass, and a
frozen leaf no optimizer state. Where only the last layers are trained, the stack is cut in two for the length of the
stage: ``encoder/layers[:25]/...`` and ``encoder/layers[25:]/...``. So with the vision encoder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jasper_jax.parameters.patterns import trained_leaves
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.runtime.errors import UserError

STACKS = ("encoder/layers/", "vision/layers/")
"""Where layers are stacked."""

Flat = dict[str, Any]
"""Leaf name -> array."""


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which leaves a stage trains. ``cut``: the first layer of the second stack, 0 for one stack; ``stack``: of which
    layers, one of ``STACKS``."""

    cut: int
    trained: frozenset[str]
    stack: str = STACKS[0]

    def split(self, params: Mapping[str, Any]) -> tuple[Flat, Flat]:
        """Canonical nested params -> (trained, frozen) flat dicts, the stack cut in two if need be."""
        trained: Flat = {}
        frozen: Flat = {}
        for name, leaf in _cut(flatten(params), self.stack, self.cut).items():
            (trained if name in self.trained else frozen)[name] = leaf
        return trained, frozen

    def merge(self, trained: Flat, frozen: Flat) -> dict[str, Any]:
        """(trained, frozen) -> nested params as the encoder takes them: ``layers`` one stack or a pair of stacks."""
        flat = {**frozen, **trained}
        if not self.cut:
            return unflatten(flat)
        first, second = _stack_names(self.stack, self.cut)
        rest: Flat = {n: v for n, v in flat.items() if not n.startswith((first, second))}
        params = unflatten(rest)
        params[self.stack.split("/")[0]]["layers"] = tuple(
            unflatten({n.removeprefix(p): v for n, v in flat.items() if n.startswith(p)}) for p in (first, second)
        )
        return params

    def canonical(self, trained: Flat, frozen: Flat) -> dict[str, Any]:
        """(trained, frozen) -> canonical nested params with one stack, as numpy or JAX arrays."""
        flat = {**frozen, **trained}
        if self.cut:
            first, second = _stack_names(self.stack, self.cut)
            for name in [n for n in flat if n.startswith(first)]:
                rest = name.removeprefix(first)
                below, above = flat.pop(name), flat.pop(second + rest)
                join = np.concatenate if isinstance(below, np.ndarray) else jnp.concatenate
                flat[self.stack + rest] = join([below, above])
        return unflatten(flat)


def make_partition(patterns: Sequence[str], params: Mapping[str, Any], where: str) -> Partition:
    """The partition that ``patterns`` make of ``params`` (arrays or shapes; one stack of layers).

    Raises:
      UserError: a pattern matches nothing, or slices do not fit (see ``patterns.trained_leaves``), or lie in
        both encoders.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(params).items()}
    starts = trained_leaves(patterns, shapes, where)
    cut = max(starts.values(), default=0)
    if not cut:
        return Partition(0, frozenset(starts))
    sliced = {stack for name, start in starts.items() for stack in STACKS if start and name.startswith(stack)}
    if len(sliced) > 1:
        raise UserError(f"{where}: slices layers of the text and of the vision encoder; a stage slices one of them")
    (stack,) = sliced
    first, second = _stack_names(stack, cut)
    trained: set[str] = set()
    for name, start in starts.items():
        if name.startswith(stack):
            rest = name.removeprefix(stack)
            trained.add(second + rest)
            if start == 0:
                trained.add(first + rest)
        else:
            trained.add(name)
    return Partition(cut, frozenset(trained), stack)


def _stack_names(stack: str, cut: int) -> tuple[str, str]:
    stem = stack.rstrip("/")
    return f"{stem}[:{cut}]/", f"{stem}[{cut}:]/"


def _cut(flat: Mapping[str, Any], stack: str, cut: int) -> Flat:
    if not cut:
        return dict(flat)
    first, second = _stack_names(stack, cut)
    out: Flat = {}
    for name, leaf in flat.items():
        if name.startswith(stack):
            rest = name.removeprefix(stack)
            out[first + rest], out[second + rest] = _slice(leaf, 0, cut), _slice(leaf, cut, None)
        else:
            out[name] = leaf
    return out


def _slice(leaf: Any, start: int, stop: int | None) -> Any:
    if hasattr(leaf, "__getitem__"):
        return leaf[start:stop]
    import jax

    layers = (leaf.shape[0] if stop is None else stop) - start
    return jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype)
