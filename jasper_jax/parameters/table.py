"""The sharding of parameters as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jasper_jax.parameters.sharding import Placement


def leaf_table(leaves: Sequence[tuple[Placement, tuple[int, ...], int]]) -> Table:
    """From ``leaf_shards``: each parameter's axes, the shape of a device's shard, its bytes."""
    table = Table("parameter", "shape", "axes", "on each device", "MB", "note", title="Where parameters lie")
    table.columns[4].justify = "right"
    for where, shard, size in leaves:
        axes = ", ".join("-" if a is None else a if isinstance(a, str) else "+".join(a) for a in where.spec) or "-"
        shape, part = ("×".join(map(str, s)) for s in (where.shape, shard))
        table.add_row(where.name, shape, axes, part, f"{size / 1e6:,.2f}", where.note)
    return table
