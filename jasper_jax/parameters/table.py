"""Where parameters lie, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jasper_jax.parameters.sharding import Placed


def leaf_table(leaves: Sequence[tuple[Placed, tuple[int, ...], int]]) -> Table:
    """Parameters: where each lies, the shape of a device's part, its bytes."""
    table = Table("parameter", "shape", "axes", "on each device", "MB", "note", title="Where parameters lie")
    table.columns[4].justify = "right"
    for where, shard, size in leaves:
        axes = ", ".join("-" if a is None else a if isinstance(a, str) else "+".join(a) for a in where.spec) or "-"
        shape, part = ("×".join(map(str, s)) for s in (where.shape, shard))
        table.add_row(where.name, shape, axes, part, f"{size / 1e6:,.2f}", where.note)
    return table
