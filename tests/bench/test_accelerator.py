"""``scripts/bench/accelerator.py`` at its tiny size: each check runs here as it would on an accelerator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
QUICK = ("device", "precision", "relative", "idle", "checkpoint-memory", "embedder")
"""Those that take a second or two of one core; the others are of the long tests."""


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The script as a module, with a scratch folder that its checks share."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("ACCELERATOR_SCRATCH", str(tmp_path))
    import accelerator

    # The session's cache of programs stays as it is.
    monkeypatch.setattr(accelerator, "cache_programs", lambda scratch: None)
    return accelerator


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_the_quick_checks(accelerator, capsys) -> None:
    only = [word for name in QUICK for word in ("--only", name)]
    code = accelerator.main(["--size", "tiny", "--in-process", *only])
    found = lines(capsys.readouterr().out)
    assert [(one["check"], one["status"]) for one in found] == [(name, "passed") for name in QUICK], found
    assert code == 0
    assert found[0]["peak_teraflops"] is None  # a CPU


@pytest.mark.full
def test_every_check_in_a_process_of_its_own(accelerator) -> None:
    command = [sys.executable, str(BENCH / "accelerator.py"), "--size", "tiny", "--minutes", "60"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    found = lines(done.stdout)
    assert [one["check"] for one in found] == [check.name for check in accelerator.CHECKS]
    assert all(one["status"] in ("passed", "skipped") for one in found), found
    assert done.returncode == 0


def test_a_check_that_raises_is_a_line_and_the_next_one_runs(accelerator, monkeypatch, capsys) -> None:
    broken = accelerator.Check("broken", "numerics:no_such_function", "never")
    device = next(check for check in accelerator.CHECKS if check.name == "device")
    monkeypatch.setattr(accelerator, "CHECKS", (broken, device))
    assert accelerator.main(["--size", "tiny", "--in-process"]) == 1
    first, second = lines(capsys.readouterr().out)
    assert (first["status"], second["status"]) == ("error", "passed")
    assert "no_such_function" in first["error"]


def test_a_process_that_ends_without_a_result_is_an_error(accelerator, monkeypatch, tmp_path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import os; print('last words', flush=True); os._exit(7)")
    monkeypatch.setattr(accelerator, "__file__", str(script))
    line = accelerator.run_apart(accelerator.CHECKS[0], "tiny", 60.0)
    assert (line["status"], line["error"]) == ("error", "ended with code 7")
    assert "last words" in line["output"]


@pytest.fixture
def sleeps(accelerator, monkeypatch, tmp_path) -> None:
    """Each check is a process that never ends by itself."""
    script = tmp_path / "sleeps.py"
    script.write_text("import time; print('asleep', flush=True); time.sleep(600)")
    monkeypatch.setattr(accelerator, "__file__", str(script))


def test_a_check_that_does_not_fit_into_the_script_s_time_is_skipped(accelerator, sleeps, monkeypatch, capsys) -> None:
    monkeypatch.setattr(accelerator, "LEAST", 0.1)
    monkeypatch.setattr(accelerator, "CLOSING", 0.0)
    assert accelerator.main(["--minutes", "0.01", "--only", "device", "--only", "attention"]) == 1
    stopped, late = lines(capsys.readouterr().out)
    assert (stopped["status"], late["status"]) == ("skipped", "skipped")
    assert stopped["reason"].startswith("stopped after the 1 s that were left of --minutes; run it alone")
    assert late["reason"].startswith("not started: 0 s were left")


def test_a_check_that_takes_longer_than_its_own_limit_is_an_error(accelerator, sleeps) -> None:
    line = accelerator.run_apart(accelerator.Check("slow", "numerics:device", "never", 0.5), "tiny", 60.0)
    assert (line["status"], line["error"]) == ("error", "no result after 0 s")


def test_all_checks_together_end_before_the_script_s_time(accelerator, monkeypatch, capsys) -> None:
    """Each takes all that it may."""
    clock = [0.0]
    monkeypatch.setattr(accelerator, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def take_all(check, size, left):
        clock[0] += min(left, check.seconds)
        return {"check": check.name, "status": "passed"}

    monkeypatch.setattr(accelerator, "run_apart", take_all)
    assert sum(check.seconds for check in accelerator.CHECKS) > 600
    assert accelerator.main([]) == 1
    assert clock[0] == 600 - accelerator.CLOSING
    statuses = [line["status"] for line in lines(capsys.readouterr().out)]
    assert len(statuses) == len(accelerator.CHECKS)
    assert set(statuses[:4]) == {"passed"}
    assert statuses[-1] == "skipped"


def test_out_of_time_and_unknown_names(accelerator, capsys) -> None:
    assert accelerator.main(["--minutes", "0", "--only", "device"]) == 1
    (line,) = lines(capsys.readouterr().out)
    assert (line["status"], line["out_of_time"]) == ("skipped", True)
    assert "not started: 0 s were left of --minutes; run it alone: --only device" in line["reason"]
    with pytest.raises(SystemExit):
        accelerator.main(["--only", "devise"])
    assert "checks are device, attention" in capsys.readouterr().err
