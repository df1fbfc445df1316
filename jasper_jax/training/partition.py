"""Freezing as a partition of the parameters, not a mask on updates.

A stage's ``train`` patterns divide the canonical parameters (one stack of layers) into a trained and a frozen part.
The gradient is taken with respect to the trained part alone, so a frozen layer below it has no backward pass, and a
frozen leaf no optimizer state. Where only the last layers are trained, the stack is cut in two for the length of the
stage: ``encoder/layers[:25]/...`` and ``encoder/layers[25:]/...``; likewise the vision encoder's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.parameters.patterns import trained_leaves
from jasper_jax.parameters.trees import flatten, unflatten
from jasper_jax.runtime.errors import UserError

STACKS = ("encoder/layers/", "vision/layers/")
"""Where layers are stacked."""

Flat = dict[str, Any]
"""Leaf name -> array."""
Cut = Callable[[Any, int, tuple[str, str]], tuple[Any, Any]]
Join = Callable[[Any, Any, str], Any]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which leaves a stage trains. ``stack``, one of ``STACKS``, is cut before layer ``cut``; 0 leaves it in one
    piece."""

    cut: int
    trained: frozenset[str]
    stack: str = STACKS[0]

    def split(self, params: Mapping[str, Any], cut: Cut | None = None) -> tuple[Flat, Flat]:
        """Canonical nested params -> (trained, frozen) flat dicts, the stack cut in two if need be.

        Leaves are the same objects, only those of a cut stack are new: ``cut(leaf, first layer of the second part,
        names of the two parts)`` makes them, by slicing where none is given."""
        trained: Flat = {}
        frozen: Flat = {}
        for name, leaf in self._cut(flatten(params), cut or _slices).items():
            (trained if name in self.trained else frozen)[name] = leaf
        return trained, frozen

    def _cut(self, flat: Mapping[str, Any], cut: Cut) -> Flat:
        if not self.cut:
            return dict(flat)
        first, second = _stack_names(self.stack, self.cut)
        out: Flat = {}
        for name, leaf in flat.items():
            if name.startswith(self.stack):
                rest = name.removeprefix(self.stack)
                names = first + rest, second + rest
                out.update(zip(names, cut(leaf, self.cut, names)))
            else:
                out[name] = leaf
        return out

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

    def canonical(self, trained: Flat, frozen: Flat, join: Join | None = None) -> dict[str, Any]:
        """(trained, frozen) -> canonical nested params with one stack, as numpy or JAX arrays. ``join(below, above,
        name)`` puts the parts of a cut leaf together, by concatenation where none is given."""
        flat = {**frozen, **trained}
        if self.cut:
            first, second = _stack_names(self.stack, self.cut)
            for name in [n for n in flat if n.startswith(first)]:
                rest = name.removeprefix(first)
                below, above = flat.pop(name), flat.pop(second + rest)
                flat[self.stack + rest] = (join or _concatenated)(below, above, self.stack + rest)
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


def _slices(leaf: Any, cut: int, names: tuple[str, str]) -> tuple[Any, Any]:
    if hasattr(leaf, "__getitem__"):
        return leaf[:cut], leaf[cut:]
    layers, *rest = leaf.shape
    first, second = (jax.ShapeDtypeStruct((n, *rest), leaf.dtype) for n in (cut, layers - cut))
    return first, second


def _concatenated(below: Any, above: Any, name: str) -> Any:
    return (np if isinstance(below, np.ndarray) else jnp).concatenate([below, above])
