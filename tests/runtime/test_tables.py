"""Tables fit the terminal or become lists; nothing in them is cut."""

from __future__ import annotations

import io

from rich.table import Table

from jasper_jax.runtime.console import PlainConsole, bold
from jasper_jax.runtime.tables import print_table

LONG = "sentence-transformers-paraphrase-multilingual"


def printed(width: int, terminal: bool) -> str:
    table = Table("name", "scores [%]", "note", title="Models", caption="all of them")
    table.add_row(LONG, bold("0.5", " ± 0.1"), "one\ntwo")
    table.add_row("", "0.25", "")
    out = io.StringIO()
    print_table(table, PlainConsole(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


def test_a_wide_terminal_and_a_file_get_a_table() -> None:
    for text in (printed(120, terminal=True), printed(40, terminal=False)):
        assert any(LONG in line and "0.5 ± 0.1" in line for line in text.splitlines())


def test_a_narrow_terminal_gets_lists_with_whole_names() -> None:
    of_both = [LONG, "  scores [%]: 0.5 ± 0.1", "  note: one; two", LONG, "  scores [%]: 0.25"]
    assert printed(60, terminal=True).splitlines() == ["Models", *of_both, "all of them"]
