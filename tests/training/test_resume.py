"""Stopped at any moment and continued, a run ends with the parameters of an undisturbed one, to the bit.

Three moments of a kill; ``scripts/bench/faults.py kills`` tries dozens in every phase.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jasper_jax.recipe.load import parse_recipe
from jasper_jax.run import Run
from tests.tiny import recipe_tree
from tests.training.runs import parameters, run_training


def write_recipe(place: Path, **changes) -> Path:
    path = place / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(place, **changes)))
    return path


def start(recipe: Path, log: Path, command: str = "tests.training.without_torch") -> subprocess.Popen:
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", command, "run", str(recipe)],
            cwd=Path(__file__).parents[2],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def happened(run: Path, moment: str) -> bool:
    """Whether a run folder shows that ``moment`` has begun."""
    metrics = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return {
        "embedding": lambda: any(run.glob("vectors/a/*array_record*")),
        "stage 1 step": lambda: '"stage_index": 0' in metrics,
        "checkpoint": lambda: any(run.glob("checkpoints/00-*/*step-*")),
        "stage change": lambda: (run / "checkpoints" / "00-stage-1" / "final").exists(),
    }[moment]()


def wait_for(process: subprocess.Popen, run: Path, moment: str) -> None:
    deadline = time.monotonic() + 300
    while not happened(run, moment):
        assert process.poll() is None, f"ended before {moment}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(place)
    # Here alone torch reads the export: the others' files have to equal it, byte for byte.
    whole = start(recipe, place / "log", "jasper_jax.cli")
    assert whole.wait(timeout=500) == 0, (place / "log").read_text()
    assert "sentence-transformers loads it" in (place / "log").read_text()
    return place / "run"


def check_equal(run: Path, undisturbed: Path) -> None:
    def final(folder: Path) -> dict[str, np.ndarray]:
        return parameters(Run(parse_recipe(yaml.safe_load((folder / "recipe.yaml").read_text()), "recipe")), 2)

    expected, found = final(undisturbed), final(run)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    # The marker holds the recipe, and with it the folders of this test's models.
    expected_files, files = contents(undisturbed / "export"), contents(run / "export")
    assert files.keys() == expected_files.keys()
    named = {"jasper.json", "README.md"}
    assert [n for n in files if files[n] != expected_files[n] and n not in named] == []
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = [(e["stage_index"], e["step"]) for e in steps if e["event"] == "step"]
    assert numbers == sorted(set(numbers)), "every step stands in the metrics once"
    assert len(numbers) == 12


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("embedding", marks=pytest.mark.full),
        "checkpoint",
        pytest.param("stage change", marks=pytest.mark.full),
    ],
)
def test_killed_and_continued(moment: str, undisturbed: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    process = start(recipe, tmp_path / "log")
    wait_for(process, tmp_path / "run", moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start(recipe, tmp_path / "log").wait(timeout=500) == 0, (tmp_path / "log").read_text()
    check_equal(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("moment", [pytest.param("embedding", marks=pytest.mark.full), "stage 1 step"])
def test_asked_to_stop_and_continued(moment: str, undisturbed: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    process = start(recipe, tmp_path / "log")
    wait_for(process, tmp_path / "run", moment)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) in (75, 0)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert start(recipe, tmp_path / "log").wait(timeout=500) == 0, (tmp_path / "log").read_text()
    check_equal(tmp_path / "run", undisturbed)


def test_stopped_at_every_step(undisturbed: Path, tmp_path: Path) -> None:
    """In one process: each call does one step, saves, and leaves."""
    run = Run(parse_recipe(recipe_tree(tmp_path), "tiny"), progress=False)
    calls = 0
    while not run_training(run, stop=lambda step: True):
        calls += 1
        assert calls < 20
    assert calls == 11, "three stages of four steps; a stop at the last step of the last stage has nothing left to stop"
    expected = parameters(Run(parse_recipe(yaml.safe_load((undisturbed / "recipe.yaml").read_text()), "recipe")), 2)
    for name, leaf in parameters(run, 2).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


@pytest.mark.full
def test_killed_with_its_machine_and_continued_from_the_mirror(undisturbed: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "bucket"
    recipe = write_recipe(tmp_path, mirror=f"file://{mirror}")
    process = start(recipe, tmp_path / "log")
    deadline = time.monotonic() + 300
    while not (mirror / "checkpoints" / "00-stage-1" / "step-000002.sha256.json").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "run")
    assert start(recipe, tmp_path / "log").wait(timeout=500) == 0, (tmp_path / "log").read_text()
    assert "copying them and the metrics from there" in (tmp_path / "log").read_text()
    check_equal(tmp_path / "run", undisturbed)
    assert contents(tmp_path / "run" / "export") == contents(mirror / "export")
    here, there = contents(tmp_path / "run" / "checkpoints"), contents(mirror / "checkpoints")
    assert {name: there.get(name) for name in here} == here
    # Killed while it dropped a checkpoint, its files may stay; without their checksums they do not count.
    assert not any(str(name).endswith(".sha256.json") for name in there.keys() - here.keys())
    for name in ("recipe.yaml", "metrics.jsonl", "evaluation.json"):
        assert (mirror / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
