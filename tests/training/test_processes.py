"""Processes that train together: the same student as one process makes, whoever is killed, on whatever mesh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from jasper_jax.evaluation.evaluation import from_json
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.training.metrics import read_events
from tests.tiny import recipe_tree, sentences
from tests.tiny_vision import vision_changes
from tests.training.processes import free_port, start
from tests.training.runs import parameters

pytestmark = pytest.mark.usefixtures("quick_programs")

STEPS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


def write(place: Path, name: str, steps: int = STEPS, **changes) -> Path:
    """A recipe of one stage, its run folder called ``name``; texts and vectors are shared.

    A batch of 32: where rounding swaps two all but equal similarities of the teachers, the relative loss of a small one
    shows it.
    """
    tree = recipe_tree(place, run_dir=str(place / name), stores=str(place / "stores"), **changes)
    tree["heads"] = {"fc1": {"dim": "teachers"}, "fc2": {"dim": 8}}
    tree["stages"] = [{"stage": 3, "steps": steps, "batch_size": 32, "learning_rate": 1e-4}]
    pairs = place / "pairs.csv"
    pairs.write_text("query,passage\n" + "".join(f'"{q}","{p}"\n' for q, p in zip(sentences(5, 7), sentences(5, 8))))
    tree["evaluation"] = {"retrieval": [{"name": "own", "pairs": {"csv": str(pairs)}}]}
    tree["training"] |= {"save_every": 4 if steps == STEPS else steps, "evaluate_every": None}
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def together(recipe: Path, processes: int, devices: int, *overrides: str, **kwargs) -> list[subprocess.Popen]:
    port = free_port()
    return [
        start(
            recipe,
            recipe.with_name(f"{recipe.stem}.{i}.log"),
            process=i,
            processes=processes,
            port=port,
            devices=devices,
            overrides=overrides,
            **kwargs,
        )
        for i in range(processes)
    ]


def finish(recipe: Path, started: list[subprocess.Popen]) -> list[int]:
    codes = [one.wait(timeout=400) for one in started]
    logs = "\n".join(path.read_text()[-1500:] for path in recipe.parent.glob(f"{recipe.stem}.*.log"))
    assert set(codes) <= {0, 75, 2}, logs
    return codes


def losses(recipe: Path) -> np.ndarray:
    folder = Path(yaml.safe_load(recipe.read_text())["run_dir"])
    return np.array([e["loss"] for e in read_events(folder / "metrics.jsonl") if e["event"] == "step"])


def final(recipe: Path) -> dict[str, np.ndarray]:
    run = Run(load_recipe(recipe, []), progress=False)
    return parameters(run, len(run.stages) - 1)


def scores(recipe: Path) -> dict[str, float]:
    """Of every provider that was scored: nDCG@10, and the rank correlation with the teachers in held-out texts."""
    folder = Path(yaml.safe_load(recipe.read_text())["run_dir"])
    found = {}
    for row in from_json(folder / "evaluation.json").rows:
        name = f"{row.provider} {row.head} {row.dim}"
        found[f"{name}: retrieval"] = row.retrieval["own"].ndcg10.value
        if row.agreement:
            found[f"{name}: agreement"] = row.agreement.spearman
    return found


def alike(recipe: Path, base: Path, loss: float = 1e-5, leaf: float = 1e-4) -> None:
    np.testing.assert_allclose(losses(recipe), losses(base), rtol=loss)
    found = final(recipe)
    for name, value in final(base).items():
        assert np.linalg.norm(found[name] - value) <= leaf * np.linalg.norm(value) or name.endswith("key/bias"), name


@pytest.fixture(scope="module")
def alone(place) -> Path:
    recipe = write(place, "alone")
    assert finish(recipe, together(recipe, 1, 1, command="run")) == [0]
    return recipe


@pytest.mark.parametrize(("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.full)])
def test_processes_make_the_same_student(alone, place, processes: int, devices: int) -> None:
    """``auto``: each process is a node with all parameters."""
    recipe, expected = write(place, f"together-{processes}"), scores(alone)
    shutil.rmtree(place / "stores" / "evaluation")  # the teachers' vectors of the tests
    assert finish(recipe, together(recipe, processes, devices, command="run")) == [0] * processes
    alike(recipe, alone)
    others = [recipe.with_name(f"{recipe.stem}.{i}.log").read_text() for i in range(1, processes)]
    assert not any("stage-3" in text for text in others)  # the first alone speaks
    assert all("is done; process 0 finishes alone" in text for text in others)
    assert (place / recipe.stem / "export" / "model.safetensors").is_file()
    assert scores(recipe) == pytest.approx(expected, abs=1e-3)


@pytest.mark.full
def test_processes_learn_images_alike(alone, place) -> None:
    """Stage 4: each decodes its own rows of pixels, the first finds the projector's start for all.

    Of 10 pictures a single comparison that rounding turns makes 5e-4 of the loss; without rounding, see test_mesh.
    """
    changes = vision_changes(place, projector="linear")
    found = []
    for name, processes, devices in (("images", 1, 1), ("images-together", 2, 2)):
        recipe = write(place, name, steps=2, images=changes["images"])
        tree = yaml.safe_load(recipe.read_text())
        tree["student"]["vision"] = changes["vision"]
        # 10 images do not divide by 4 devices
        tree["stages"].append({"stage": 4, "steps": STEPS, "batch_size": 10, "learning_rate": 1e-4})
        recipe.write_text(yaml.safe_dump(tree))
        mesh = f"mesh={{fsdp: {processes * devices}}}"  # more than a node, where there are two
        assert finish(recipe, together(recipe, processes, devices, mesh)) == [0] * processes
        found.append(recipe)
    alike(found[1], found[0], loss=1e-3, leaf=1e-2)


def steps_of(recipe: Path) -> int:
    path = Path(yaml.safe_load(recipe.read_text())["run_dir"]) / "metrics.jsonl"
    return path.read_text().count('"event": "step"') if path.is_file() else 0


def wait_for_steps(recipe: Path, number: int, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 300
    while steps_of(recipe) < number:
        assert time.monotonic() < deadline
        assert all(one.poll() is None for one in started), "ended too early"
        time.sleep(0.02)


def test_killed_in_the_middle_and_continued_by_one_on_another_mesh(alone, place) -> None:
    recipe = write(place, "killed")
    started = together(recipe, 2, 2)
    wait_for_steps(recipe, 6, started)
    os.killpg(started[1].pid, signal.SIGKILL)
    # The other one would wait for the dead one's heartbeats; its scheduler ends it.
    os.killpg(started[0].pid, signal.SIGKILL)
    for one in started:
        one.wait()
    assert finish(recipe, together(recipe, 1, 8, "mesh={data: 2, fsdp: 2, tensor: 2}")) == [0]
    alike(recipe, alone)


def test_asked_to_stop_all_stop_at_the_same_step(alone, place) -> None:
    steps = 1000  # some seconds: more than it takes to agree
    recipe = write(place, "stopped", steps)
    started = together(recipe, 2, 1)
    wait_for_steps(recipe, 3, started)
    os.kill(started[1].pid, signal.SIGTERM)
    assert finish(recipe, started) == [75, 75]
    stopped_after = steps_of(recipe)
    assert stopped_after < steps
    assert (place / "stopped" / "checkpoints" / "00-stage-3" / f"step-{stopped_after:06d}").is_dir()
    alone_now = together(recipe, 1, 1)
    wait_for_steps(recipe, stopped_after + 6, alone_now)
    os.killpg(alone_now[0].pid, signal.SIGKILL)  # it goes on; where it would end the other tests see
    alone_now[0].wait()
    events = [e for e in read_events(place / "stopped" / "metrics.jsonl") if e["event"] == "step"]
    assert [e["step"] for e in events[: stopped_after + 5]] == list(range(1, stopped_after + 6))


def test_processes_with_different_recipes(place) -> None:
    recipe = write(place, "unlike")
    port = free_port()
    logs = [place / f"unlike.{i}.log" for i in range(2)]
    changes = [(), ("stages.0.learning_rate=0.5",)]
    started = [
        start(recipe, log, process=i, processes=2, port=port, overrides=changes[i]) for i, log in enumerate(logs)
    ]
    assert finish(recipe, started) == [2, 2]
    for log in logs:
        line = log.read_text().strip().splitlines()[-1]
        assert "processes 0 and 1 do not run the same: recipe.stages[0].learning_rate (0.0001 there, 0.5 asked)" in line


def test_a_coordinator_that_cannot_be_reached(place) -> None:
    recipe, port = write(place, "unreached"), free_port()
    log = place / "unreached.1.log"
    started = start(recipe, log, process=1, processes=2, port=port, JASPER_PATIENCE="1")
    assert finish(recipe, [started]) == [2]
    assert f"jasper: the coordinator 127.0.0.1:{port} could not be reached in 1 s" in log.read_text()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JASPER_PROCESSES": "2"}, "--coordinator (JASPER_COORDINATOR), --processes (JASPER_PROCESSES) and --process"),
        ({"JASPER_COORDINATOR": "a:1", "JASPER_PROCESSES": "2", "JASPER_PROCESS": "2"}, "allowed are 0 to 1"),
        ({"JASPER_COORDINATOR": "a", "JASPER_PROCESSES": "2", "JASPER_PROCESS": "1"}, "host:port of process 0"),
        (
            {"JASPER_COORDINATOR": "a:1", "JASPER_PROCESSES": "two", "JASPER_PROCESS": "1"},
            "'two' is not a whole number",
        ),
    ],
)
def test_a_list_of_processes_that_cannot_be(refused, tmp_path, monkeypatch, environment, message) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe_tree(tmp_path)))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(message, "train", path)
