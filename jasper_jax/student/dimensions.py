"""Which head provides which output dimension: ``encode(dim=256)`` and ``2_Dense_256`` select by the number alone.

A separate head takes precedence over a nested dimension of the same size, which is then hidden, unless
``export.dims: {256: fc1}`` says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

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
