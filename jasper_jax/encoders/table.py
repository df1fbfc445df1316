"""A family's weight table: which checkpoint tensor is which parameter. It is read in both directions."""

from __future__ import annotations

from dataclasses import dataclass

LAYERS = "layers/"
"""Paths under it have one tensor per layer in a checkpoint, and one stacked leaf here."""


@dataclass(frozen=True)
class Weight:
    """``name``: the tensor in a transformers checkpoint, ``{}`` standing for the layer; ``path``: the leaf here.

    ``transpose``: torch keeps a linear map as [out, in], its use here is ``x @ kernel`` with [in, out].
    """

    name: str
    path: str
    transpose: bool = False

    def __post_init__(self) -> None:
        if ("{}" in self.name) != self.path.startswith(LAYERS):
            raise ValueError(f"{self.name} -> {self.path}: '{{}}' belongs with {LAYERS!r}, and only with it")


def linear(name: str, path: str, *, bias: bool = True) -> tuple[Weight, ...]:
    """A torch Linear -> kernel and bias."""
    kernel = Weight(f"{name}.weight", f"{path}/kernel", transpose=True)
    return (kernel, Weight(f"{name}.bias", f"{path}/bias")) if bias else (kernel,)


def norm(name: str, path: str, *, bias: bool = True) -> tuple[Weight, ...]:
    """A torch LayerNorm (or, without bias, RMSNorm) -> scale and bias."""
    scale = Weight(f"{name}.weight", f"{path}/scale")
    return (scale, Weight(f"{name}.bias", f"{path}/bias")) if bias else (scale,)


def embedding(name: str, path: str) -> tuple[Weight, ...]:
    """A torch Embedding -> its table."""
    return (Weight(f"{name}.weight", f"{path}/embedding"),)
