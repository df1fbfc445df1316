"""Progress: a bar on a terminal, lines in a log file, and only from the first of several processes."""

from __future__ import annotations

import pytest

from jasper_jax.runtime import processes, progress


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
