"""The consoles on which commands print. Strings are literal: never markup, and without control characters.

What is bold is made with :func:`bold`.
"""

from __future__ import annotations

import sys
import traceback
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from jasper_jax.runtime.shown import shown


class PlainConsole(Console):
    """Prints any string, also the cells and titles of tables, as it is (see :func:`jasper_jax.runtime.shown.shown`)."""

    def render_str(self, text: str, **options: Any) -> Text:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().render_str(shown(text), **{**options, "markup": False, "emoji": False, "highlight": False})


def new_console(file: IO[str] | None = None, **options: Any) -> PlainConsole:
    """A console on ``file`` (standard output if None) that wraps no lines. In a notebook it shows HTML in the cell."""
    options = {"soft_wrap": True, "markup": False, "emoji": False, "highlight": False, **options}
    console = PlainConsole(file=file, **options)
    if console.is_jupyter:  # beside the HTML, notebooks keep plain text: without a terminal's codes
        return PlainConsole(file=file, **{"color_system": None, **options})
    return console


def print_traceback(error: BaseException) -> None:
    """On standard error. The message may have any text in it."""
    new_console(sys.stderr).print("".join(traceback.format_exception(error)), end="")


def bold(text: str, rest: str = "") -> Text:
    """``text`` in bold, then ``rest``; both literally."""
    return Text.assemble((shown(text), "bold"), shown(rest))
