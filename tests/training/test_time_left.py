"""The time until the last stage is trained, and the line that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jasper_jax.run import Run
from jasper_jax.runtime import progress
from jasper_jax.runtime.timings import duration
from jasper_jax.student.start import make_student
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.time_left import TimeLeft
from tests.tiny import recipe
from tests.training.runs import run_training

STAGE = {"batch_size": 16, "learning_rate": 1e-3}


def test_later_stages_count_by_their_operations(tmp_path: Path) -> None:
    stages = [{"stage": 1, "steps": 8, **STAGE}, {"stage": 3, "steps": 4, **STAGE}]
    run = Run(recipe(tmp_path, stages=stages), progress=False)
    student = make_student(run.recipe, 24, run.student)
    first, last = (make_kind(run.recipe, stage, student) for stage in run.stages)
    assert TimeLeft([last]).seconds(1, 2.0, 9.0) == 6.0
    assert TimeLeft([last]).seconds(4, 2.0, 9.0) == 0.0
    both = TimeLeft([first, last]).seconds(3, 1.0, 9.0)
    assert 5 + 2.5 * 4 < both < 5 + 3.2 * 4, "a layer that is trained costs three times one that is not"
    twice = TimeLeft([first, first]).seconds(3, 1.0, 9.0)
    assert twice == 5 + 8


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5990, "100 min"), (6000, "1.7 h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_line_of_a_stage_says_how_it_goes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    stages = [{"stage": 1, "steps": 3, **STAGE}, {"stage": 1, "name": "again", "steps": 2, **STAGE}]
    run = Run(recipe(tmp_path, stages=stages, training={"evaluate_every": 1}), progress=True)
    assert run_training(run)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stage-1: 3 of 3")]
    assert any(", held out " in line and ", all stages " in line and line.endswith(" GiB") for line in lines), lines
