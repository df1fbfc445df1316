"""Which head provides which output dimension: ``encode(dim=256)`` and ``2_Dense_256`` select by the number alone.

A separate head takes precedence over a nested dimension of the same size, which is then hidden, unless
``export.dims: {256: fc1}`` says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from jasper_jax.runtime.errors import UserError
from jasper_jax.student.heads import HeadShape


@dataclasses.dataclass(frozen=True)
class Provider:
    """The head that provides a dimension, and the ``hidden`` heads that could."""

    head: str
    nested: bool
    hidden: tuple[str, ...] = ()


def providers(heads: Mapping[str, HeadShape], chosen: Mapping[int, str]) -> dict[int, Provider]:
    """Dimension -> its provider, the largest dimension first, of trained ``heads``; ``chosen`` is ``export.dims``.

    Raises:
      UserError: two separate heads of one dimension and no choice; a choice that the head cannot provide.
    """
    served: dict[int, Provider] = {}
    for dim in sorted({d for head in heads.values() for d in head.dims}, reverse=True):
        separate = [name for name, head in heads.items() if head.dim == dim]
        nested = [name for name, head in heads.items() if dim in head.dims[1:]]
        able = separate + nested
        pick = chosen.get(dim)
        if pick is not None and pick not in able:
            raise UserError(f"export.dims: {pick} does not provide {dim} dimensions; {' or '.join(able)} does")
        if pick is None and (len(separate) > 1 or (not separate and len(nested) > 1)):
            raise UserError(
                f"export.dims: {' and '.join(able)} both provide {dim} dimensions; choose: {{{dim}: {able[0]}}}"
            )
        head = pick or able[0]
        served[dim] = Provider(head, head in nested, tuple(name for name in able if name != head))
    for dim in chosen:
        if dim not in served:
            raise UserError(
                f"export.dims: no trained head provides {dim} dimensions; there are {', '.join(map(str, served))}"
            )
    return served


def default_dimension(served: Mapping[int, Provider], chosen: int | None) -> int:
    """The dimension of a folder loaded without naming one: ``chosen`` (``export.dim``), else the largest.

    Raises:
      UserError: no trained head provides ``chosen``.
    """
    if chosen is not None and chosen not in served:
        dims = ", ".join(map(str, served))
        raise UserError(f"export.dim: no trained head provides {chosen}; dimensions are {dims}")
    return chosen or max(served)


def cut_dimensions(served: Mapping[int, Provider], default: int, nested: Collection[str]) -> tuple[int, ...]:
    """The dimensions that a server gets right from vectors of the ``default`` dimension alone, the largest first.

    Servers cut: the first components, L2-normalised again. That gives the vectors of ``Embedder.encode(dim=...)``
    where one of the ``nested`` heads, those with a loss at their nested dimensions, provides both. A nested dimension
    that is hidden by another head is not among them. () if there is nothing to cut to.
    """
    head = served[default].head
    dims = tuple(sorted((d for d, p in served.items() if p.head == head and d <= default), reverse=True))
    return dims if len(dims) > 1 and head in nested else ()
