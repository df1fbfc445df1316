"""A family's weight table: checkpoint tensors <-> parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LAYERS = "layers/"
"""Paths under it are one tensor per layer in a checkpoint, one stacked leaf here."""


@dataclass(frozen=True)
class Weight:
    """``name``: the tensor in a transformers checkpoint, with ``{}`` for the layer; ``path``: the leaf here.

    ``transpose``: torch stores a linear map as [out, in], kernels here are [in, out]. ``part``: (i, n), the leaf is the
    i-th of n equal parts of the tensor's first axis; the table names all n. ``first_layer``: earlier layers have no
    such tensor; their rows of the leaf are ones, and unused.
    """

    name: str
    path: str
    transpose: bool = False
    part: tuple[int, int] = (0, 1)
    first_layer: int = 0

    def __post_init__(self) -> None:
        if ("{}" in self.name) != self.path.startswith(LAYERS):
            raise ValueError(f"{self.name} -> {self.path}: '{{}}' belongs with {LAYERS!r}, and only with it")


def linear(name: str, path: str, *, bias: bool = True) -> tuple[Weight, ...]:
    """A torch Linear -> kernel and bias."""
    kernel = Weight(f"{name}.weight", f"{path}/kernel", transpose=True)
    return (kernel, Weight(f"{name}.bias", f"{path}/bias")) if bias else (kernel,)


def joint_linear(name: str, paths: Sequence[str], *, bias: bool = True) -> tuple[Weight, ...]:
    """One torch Linear that computes several maps of one width at once -> kernel and bias of each."""
    n = len(paths)
    kernels = tuple(
        Weight(f"{name}.weight", f"{path}/kernel", transpose=True, part=(i, n)) for i, path in enumerate(paths)
    )
    biases = tuple(Weight(f"{name}.bias", f"{path}/bias", part=(i, n)) for i, path in enumerate(paths))
    return kernels + biases if bias else kernels


def norm(name: str, path: str, *, bias: bool = True, first_layer: int = 0) -> tuple[Weight, ...]:
    """A torch LayerNorm (or, without bias, RMSNorm) -> scale and bias."""
    scale = Weight(f"{name}.weight", f"{path}/scale", first_layer=first_layer)
    return (scale, Weight(f"{name}.bias", f"{path}/bias", first_layer=first_layer)) if bias else (scale,)


def embedding(name: str, path: str) -> tuple[Weight, ...]:
    """A torch Embedding -> its table."""
    return (Weight(f"{name}.weight", f"{path}/embedding"),)
