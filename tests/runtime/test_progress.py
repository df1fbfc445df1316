"""Progress: a bar on a terminal, lines in a log file, and only from the first of several processes."""

from __future__ import annotations

import builtins
import contextlib
import sys
import types

import pytest

from jasper_jax.runtime import processes, progress
from jasper_jax.runtime.console import bold, new_console


def test_a_log_file_gets_a_last_line_with_amount_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("embedding [a]", 1500, "texts", start=500) as shown:
        shown.advance(1000, note="loss 0.5")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("embedding [a]: 1,500 of 1,500 (")
    assert line.endswith("texts/s)")


def test_a_log_file_gets_a_line_now_and_then(capsys, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.bar("steps", 12, "steps") as shown:
        for seconds, amount in ((10, 1), (40, 3), (50, 3)):
            clock[0] = seconds
            shown.advance(amount, note=f"at {seconds} s")
    first, last = capsys.readouterr().err.splitlines()
    assert first == "steps: 4 of 12 (0.1 steps/s, 80 s left) at 40 s"
    assert last.startswith("steps: 7 of 12")


def test_an_unknown_total_has_no_time_left(capsys) -> None:
    with progress.bar("images", None, "pairs") as shown:
        shown.advance(7)
    assert capsys.readouterr().err.startswith("images: 7 (")


def test_nothing_is_shown_where_progress_is_off(capsys) -> None:
    with progress.bar("images", 3, "pairs", enabled=False) as shown:
        shown.advance(3)
    assert capsys.readouterr().err == ""


def test_only_the_first_process_speaks(capsys, monkeypatch) -> None:
    monkeypatch.setattr(processes, "index", lambda: 1)
    with progress.bar("images", 3, "pairs") as shown:
        shown.advance(3)
    progress.say("done")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(processes, "index", lambda: 0)
    progress.say("[bold] done")
    assert capsys.readouterr().err == "[bold] done\n"


class ZMQInteractiveShell:
    """What Rich knows a notebook by: the name of the class of ``get_ipython()``."""


@pytest.fixture
def notebook(monkeypatch):
    """What the cells of a notebook show, by type; with the widget in which Rich draws a bar."""
    shown: list[dict[str, str]] = []
    cell, widgets = types.ModuleType("IPython.display"), types.ModuleType("ipywidgets")
    cell.display = lambda seen: shown.append({} if isinstance(seen, Output) else seen._repr_mimebundle_((), ()))

    class Output(contextlib.AbstractContextManager):
        def __exit__(self, *_: object) -> None: ...

        def clear_output(self, *, wait: bool) -> None: ...

    widgets.Output = Output
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", cell)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: object() if widgets_here[0] else None)
    widgets_here = [True]
    return shown, widgets_here


def test_a_notebook_shows_a_bar_and_lines_without_terminal_codes(notebook, capsys) -> None:
    shown, _ = notebook
    with progress.bar("stage-1", 4, "steps") as live:
        live.advance(4, note="loss 0.5")
    progress.say("[bold] done")
    new_console().print(bold("here", ": it is"))
    texts = [cell.get("text/plain", "").strip() for cell in shown]
    assert texts[0] == ""  # the widget
    assert {"4/4", "loss", "0.5"} <= {*" ".join(texts[1:-2]).split()}
    assert texts[-2:] == ["[bold] done", "here: it is"]
    assert "font-weight: bold" in shown[-1]["text/html"]
    assert not [cell for cell in shown if "\x1b" in "".join(cell.values())]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_without_widgets_gets_lines(notebook, capsys) -> None:
    shown, widgets_here = notebook
    widgets_here[0] = False
    with progress.bar("stage-1", 4, "steps") as live:
        live.advance(4)
    (line,) = shown
    assert line["text/plain"].startswith("stage-1: 4 of 4 (")
    assert capsys.readouterr() == ("", "")
