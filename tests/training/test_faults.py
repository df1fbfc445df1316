"""What can go wrong in training is found, named, and leaves the last good state as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jasper_jax.checkpoints.checkpoint import Checkpoints, Position
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError, WriteFailed
from jasper_jax.runtime.files import exclusive
from jasper_jax.training.metrics import Metrics, read_events
from tests.tiny import recipe, recipe_tree
from tests.training.runs import parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")

STAGE = {"steps": 6, "batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One stage, fc1 alone, a checkpoint every two steps."""
    heads = {"fc1": {"dim": "teachers"}}
    training = {"shapes": 1, "save_every": 2, "evaluate_every": None, "keep": 2}
    return Run(recipe(tmp_path, heads=heads, stages=[{"stage": 1, **STAGE}], training=training), progress=False)


def stop_after(steps: int):
    calls = iter(range(10_000))
    return lambda step: next(calls) + 1 >= steps


def test_a_loss_that_is_not_finite_stops_the_run_and_names_everything(run: Run, tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path, heads={"fc1": {"dim": "teachers"}}, run_dir=str(tmp_path / "burst"))
    tree["stages"] = [{"stage": 1, **STAGE, "learning_rate": 1e30, "clip_norm": None}]
    tree["training"] = {"shapes": 1, "save_every": 1, "evaluate_every": None}
    from jasper_jax.recipe.load import parse_recipe

    burst = Run(parse_recipe(tree, "tiny"), progress=False)
    with pytest.raises(
        UserError, match=r"stage-1, step \d: fc1/(cosine|similarity|relative).*not finite; the batch's 16 texts"
    ):
        run_training(burst)
    record = json.loads((burst.folder / "not_finite.json").read_text())
    assert len(record["texts"]) == 16
    events = read_events(burst.folder / "metrics.jsonl")
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, record["step"]))
    saved = burst.run_folder.checkpoints().steps(0)
    assert saved
    assert max(saved) < record["step"], "no checkpoint after the last finite step"


def test_a_damaged_checkpoint_is_named_and_the_one_before_still_serves(run: Run) -> None:
    run_training(run, stop=stop_after(4))
    checkpoints = run.run_folder.checkpoints()
    newest = checkpoints.step(0, checkpoints.steps(0)[-1])
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match=rf"{victim.name}: the checkpoint is damaged.*delete {newest}"):
        run_training(run)
    for path in (newest, newest.with_name(newest.name + ".sha256.json")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_training(run)


def test_a_half_written_checkpoint_is_as_if_it_were_not_there(run: Run) -> None:
    assert run_training(run, stop=stop_after(4)) is False
    checkpoints = run.run_folder.checkpoints()
    last = checkpoints.steps(0)[-1]
    checkpoints.step(0, last).with_name(f"step-{last:06d}.sha256.json").unlink()
    assert checkpoints.latest().step < last
    assert run_training(run)
    assert checkpoints.latest() == Position(1, 0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All three stages, a checkpoint every two steps."""
    run = Run(recipe(tmp_path_factory.mktemp("undisturbed")), progress=False)
    assert run_training(run)
    return run


def stopped_copy(undisturbed: Run, place: Path, steps: int) -> Run:
    """A run of the same recipe that was stopped after so many steps."""
    run = Run(undisturbed.recipe.model_copy(update={"run_dir": str(place)}), progress=False)
    assert run_training(run, stop=stop_after(steps)) is False
    return run


def delete(path: Path) -> None:
    shutil.rmtree(path)
    path.with_name(path.name + ".sha256.json").unlink()


def test_the_end_of_a_stage_deleted_in_the_next_one_is_made_again(undisturbed: Run, tmp_path: Path) -> None:
    run = stopped_copy(undisturbed, tmp_path / "run", 4 + 3)  # in stage 2, which trains a part of what it needs
    checkpoints = run.run_folder.checkpoints()
    assert checkpoints.latest() == Position(1, 3)
    delete(checkpoints.final(0))
    assert checkpoints.latest() == Position(0, 0)
    assert run_training(run)
    for stage in range(3):
        expected, found = parameters(undisturbed, stage), parameters(run, stage)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_the_start_deleted_after_the_end_is_made_again(undisturbed: Run) -> None:
    before = parameters(undisturbed, -1)
    delete(undisturbed.run_folder.checkpoints().start())
    assert run_training(undisturbed)
    after = parameters(undisturbed, -1)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_only_the_last_checkpoints_are_kept_and_a_finished_stage_keeps_its_end(run: Run) -> None:
    assert run_training(run)
    checkpoints = run.run_folder.checkpoints()
    assert checkpoints.steps(0) == []
    assert checkpoints.has(checkpoints.final(0))
    assert checkpoints.has(checkpoints.start())


def test_a_second_process_in_a_run_folder_is_refused(run: Run) -> None:
    with (
        exclusive(run.folder, "train"),
        pytest.raises(UserError, match="another process is using this run folder"),
        exclusive(run.folder, "train"),
    ):
        pass


def test_a_batch_larger_than_the_texts_is_refused(tmp_path: Path) -> None:
    run = Run(recipe(tmp_path, stages=[{"stage": 1, **STAGE, "batch_size": 512}]), progress=False)
    with pytest.raises(UserError, match="512 exceeds the 128 training texts"):
        run_training(run)


def test_the_last_step_of_a_stage_leaves_the_last_state(run: Run) -> None:
    """save_every larger than the stage: the end is saved all the same, and training again does nothing."""
    assert run_training(run)
    before = parameters(run, 0)
    assert run_training(run)
    after = parameters(run, 0)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_the_end_of_a_stage_speaks_of_the_steps_of_its_command(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert not run_training(run, stop=stop_after(4))
    assert run_training(run)
    said = capfd.readouterr().err
    assert "stage-1: 2 of 6 steps in" in said
    assert "; padding" in said


def test_a_stage_without_steps_is_evaluated_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = [{"stage": 1, **STAGE, "steps": 0}]
    run = Run(recipe(tmp_path, heads={"fc1": {"dim": "teachers"}}, stages=stages), progress=False)
    assert run_training(run)
    start, event = read_events(run.folder / "metrics.jsonl")
    assert start["event"] == "start"
    assert (event["event"], event["step"]) == ("evaluation", 0)
    said = capfd.readouterr().err
    assert "stage-1: 0 steps in" in said
    assert "nan" not in said


def test_metrics_are_closed_when_the_last_save_fails_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Metrics] = []
    close = Metrics.close

    def record(self: Metrics) -> None:
        closed.append(self)
        close(self)

    def fail(self: Checkpoints) -> None:
        raise WriteFailed("the disk is full")

    def settle(self: Checkpoints) -> None:
        monkeypatch.setattr(Checkpoints, "wait", fail)
        raise UserError("a step failed")

    monkeypatch.setattr(Checkpoints, "settle", settle)
    monkeypatch.setattr(Metrics, "close", record)
    with pytest.raises(WriteFailed, match="the disk is full"):
        run_training(run)
    assert len(closed) == 1


def test_dropout_is_drawn_from_the_seed_and_the_step(tmp_path: Path) -> None:
    """Two runs with dropout are equal to the bit; with it, they differ from one without."""
    stages = [{"stage": 3, **STAGE, "steps": 2}]
    training = {"shapes": 1, "evaluate_every": None}
    found = []
    for name, rates in {"a": (0.1, 0.2), "b": (0.1, 0.2), "c": (0.0, 0.0)}.items():
        tree = recipe_tree(tmp_path, stages=stages, training=training, run_dir=str(tmp_path / name))
        tree["student"] |= {"dropout": rates[0], "vector_dropout": rates[1]}
        from jasper_jax.recipe.load import parse_recipe

        run = Run(parse_recipe(tree, "tiny"), progress=False)
        assert run_training(run)
        found.append(parameters(run, 0)["heads/fc1/kernel"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_a_run_folder_may_be_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training = {"shapes": 1, "evaluate_every": None, "save_every": 2}
    heads = {"fc1": {"dim": "teachers"}}
    chosen = recipe(tmp_path, heads=heads, stages=[{"stage": 1, **STAGE}], training=training, run_dir="runs/here")
    run = Run(chosen, progress=False)
    assert run_training(run, stop=stop_after(3)) is False
    assert run_training(run)
    assert (tmp_path / "runs" / "here" / "checkpoints").is_dir()
