"""``jasper assets``."""

from __future__ import annotations

from jasper_jax.runtime.tables import OUT, print_table


def list_assets() -> None:
    """``jasper assets``."""
    from rich.table import Table

    from jasper_jax.assets.cache import is_cached
    from jasper_jax.assets.catalogue import CATALOGUE

    table = Table("name", "kind", "MB", "licence", "from", "here")
    for asset in CATALOGUE.values():
        here = "yes" if is_cached(asset) else ""
        table.add_row(asset.name, asset.kind, f"{asset.size / 1e6:,.0f}", asset.licence, asset.source, here)
    print_table(table, OUT)
