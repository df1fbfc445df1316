"""What is shown has no control characters and no secrets, and is never markup."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.table import Table

import jasper_jax
from jasper_jax.runtime import progress
from jasper_jax.runtime.console import PlainConsole, bold
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.shown import shown
from jasper_jax.runtime.tables import print_table

ATTACK = "[/x] [bold]a[/] :smile: \x1b]0;title\x07\x1b[31mred\x9b2J \u202edlrow\r/ s3://key:sec/ret@bucket/a?token=t"
SHOWN = r"[/x] [bold]a[/] :smile: \x1b]0;title\x07\x1b[31mred\x9b2J \u202edlrow\r/ s3://***@bucket/a?***"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ATTACK, SHOWN),
        ("https://token@host/x@y", "https://***@host/x@y"),
        ("https://u:p@ss@host:443/x", "https://***@host:443/x"),
        ("('https://u:p@host/simple/x?X-Amz-Signature=1&b=2'): 403", "('https://***@host/simple/x?***'): 403"),
        ("exceeded with url: /x?token=abc (Caused by", "exceeded with url: /x?*** (Caused by"),
        ("https://host/#access_token=1, then", "https://host/#***, then"),
        ("Illegal header value b'Bearer hf_AbCdEfGhIjKl\x0bMnOpQrSt'", "Illegal header value b'***'"),
        ("a header\nAuthorization: Bearer eyJhbGciOi.J9.x-_=, then", "a header\nAuthorization: *** then"),
        ("the token hf_AbCdEfGhIjKlMnOpQrStUvWx01234567 is wrong", "the token *** is wrong"),
        *((f"{name} of me", f"{name} of me") for name in ("runs/hf_a_long-name-of-a-folder-2", "the bearer", "hf_hub")),
        ("hf://datasets/org/name@main/x", "hf://datasets/org/name@main/x"),
        ("gs://bucket/run and a@b.c, data/part-?.txt, why?", "gs://bucket/run and a@b.c, data/part-?.txt, why?"),
        ("\ud800 \u2066 \U000e0041", r"\ud800 \u2066 \U000e0041"),
        ("é 東京 👩‍👧\tb\r\nc", "é 東京 👩‍👧\tb\nc"),
    ],
)
def test_what_is_shown_of_a_text(text: str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(expected) == expected
    assert str(UserError(text)) == expected


def test_a_long_hostile_text_takes_no_longer_than_its_length() -> None:
    assert shown("://" * 10**6 + "@") == "://***@"
    assert shown("a" * 10**6 + "@?") == "a" * 10**6 + "@?"
    assert shown("gs://a?" + "'" * 10**6 + "x") == "gs://a?***"
    assert shown("gs://a?x" + "'" * 10**6) == "gs://a?***" + "'" * 10**6


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [30, 1000])
def test_every_way_of_printing_is_literal(terminal: bool, width: int) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, width=width, soft_wrap=True, force_terminal=terminal, color_system=None)
    table = Table("name", ATTACK, title=ATTACK, caption=ATTACK)
    table.add_row(ATTACK, bold(ATTACK, ATTACK))
    console.print(ATTACK)
    console.print(bold(ATTACK, ATTACK))
    print_table(table, console)
    printed = out.getvalue()
    assert printed.replace("\n", "").replace("  ", " ").count("[/x] [bold]a[/] :smile: ") >= 8
    assert not set("\x1b\x07\x9b\u202e\r") & set(printed)
    assert "sec/ret" not in printed
    assert "token=t" not in printed


def test_lines_and_bars_of_progress_are_literal(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say(ATTACK)
    with progress.bar(ATTACK, 2, "texts") as bar:
        bar.advance(2)
    line, count = capsys.readouterr().err.splitlines()
    assert line == SHOWN
    assert count.startswith(f"{SHOWN}: 2 of 2")


def test_a_bar_on_a_terminal_is_literal() -> None:
    out = io.StringIO()
    bar = progress.Bar(ATTACK, 2, "texts", 0, PlainConsole(file=out, width=1000, force_terminal=True), True)
    with bar._live:
        bar.advance(1, note=ATTACK)
    assert "[/x] [bold]a[/]" in out.getvalue()
    assert not set("\x07\x9b\u202e") & set(out.getvalue())


def test_nothing_prints_past_the_console() -> None:
    """Every other way to a terminal would need the same care."""
    for path in Path(jasper_jax.__file__).parent.rglob("*.py"):
        made = {
            node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        }
        forbidden = {"Console", "echo", "secho", "from_markup", "print_exception", "print_exc"}
        if path.name != "reload_in_torch.py":  # a process of its own, whose output is read
            assert not made & forbidden, path
