"""A run folder belongs to one recipe and one command at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.recipe.load import load_recipe
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe


def folder(place: Path, **changes: Any) -> RunFolder:
    return RunFolder(recipe(place, **changes))


def test_the_recipe_in_the_folder_is_the_resolved_one(tmp_path: Path) -> None:
    run = folder(tmp_path)
    run.claim()
    assert load_recipe(run.path / "recipe.yaml") == run.recipe
    run.claim()
    folder(tmp_path).claim()
    assert [p.name for p in run.path.iterdir()] == ["recipe.yaml"]


def test_another_recipe_takes_over_a_folder_in_which_nothing_was_made(tmp_path: Path) -> None:
    folder(tmp_path).claim()
    (tmp_path / "run" / "timings.json").write_text("{}")
    other = folder(tmp_path, seed=1)
    other.claim()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 1


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    folder(tmp_path).claim()
    (tmp_path / "run" / "checkpoints").mkdir()
    advice = rf"set run_dir=\.\.\. to another folder and stores={tmp_path / 'run'} texts.seed=0 to use the texts and"
    with pytest.raises(UserError, match=rf"made with another recipe; seed \(0 there, 1 asked\); {advice} vectors"):
        folder(tmp_path, seed=1).claim()
    texts = {**recipe(tmp_path).texts.model_dump(), "held_out": 33}
    with pytest.raises(UserError, match=r"held_out \(32 there, 33 asked\); set run_dir=\.\.\. to another folder$"):
        folder(tmp_path, texts=texts).claim()
    stages = [{**stage.model_dump(), "steps": 9} for stage in recipe(tmp_path).stages]
    with pytest.raises(UserError, match="to train this run on, leave its stages as they are and add one"):
        folder(tmp_path, stages=stages).claim()
    training = {**recipe(tmp_path).training.model_dump(), "shapes": 2, "ridge_texts": 65, "ridge_penalty": 0.5}
    with pytest.raises(UserError, match=r"(.*;){3}.* and more; set run_dir"):
        folder(tmp_path, seed=1, training=training).claim()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 0


def test_until_something_is_trained_another_recipe_takes_over(tmp_path: Path) -> None:
    folder(tmp_path).claim()
    (tmp_path / "run" / "texts").mkdir()
    folder(tmp_path, seed=1).claim()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 1
    with (
        folder(tmp_path, seed=1).alone("train"),
        pytest.raises(UserError, match=r"another process is using this run folder \(jasper train, process \d+ of"),
    ):
        folder(tmp_path).claim()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 1


def test_what_may_change_is_recorded(tmp_path: Path) -> None:
    folder(tmp_path).claim()
    (tmp_path / "run" / "checkpoints").mkdir()
    student = {**recipe(tmp_path).student.model_dump(), "remat": "full"}
    folder(tmp_path, student=student).claim()
    assert load_recipe(tmp_path / "run" / "recipe.yaml").student.remat == "full"


@pytest.mark.parametrize("content", ["name: [", "name: tiny\n", "a: " + "[" * 100_000])
def test_a_damaged_recipe_is_named(tmp_path: Path, content: str) -> None:
    run = folder(tmp_path)
    run.claim()
    path = run.path / "recipe.yaml"
    path.write_text(path.read_text().splitlines()[0] + "\n" + content)
    with pytest.raises(UserError, match=r"recipe.yaml: .*; jasper wrote this file: restore it, or set run_dir=\.\.\."):
        run.claim()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump({"name": "a cake"}))
    run = folder(tmp_path)
    for use in (run.claim, run.alone("train").__enter__):
        with pytest.raises(UserError, match="run: not empty and not a run folder .no recipe.yaml that a run wrote."):
            use()
    assert sorted(p.name for p in run.path.iterdir()) == ["recipe.yaml", "thesis.tex"], "not even a lock"


def test_a_recipe_that_a_killed_or_another_process_was_writing_makes_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.0a1b2c3d.tmp").write_text("# The res")
    folder(tmp_path).claim()
    (tmp_path / "run" / "recipe.yaml").unlink()
    (tmp_path / "run" / ".recipe.yaml").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        folder(tmp_path).claim()


def test_one_command_at_a_time(tmp_path: Path) -> None:
    run = folder(tmp_path)
    with run.alone("train"):
        assert (run.path / "recipe.yaml").is_file()
        with (
            pytest.raises(UserError, match=r"another process is using this run folder \(jasper train, process \d+ of"),
            folder(tmp_path).alone("export"),
        ):
            raise AssertionError
    with folder(tmp_path).alone("export"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    for run_dir in ("/proc/nowhere", "/proc/self/nowhere"):
        with pytest.raises(UserError, match=run_dir):
            folder(tmp_path, run_dir=run_dir).claim()


def test_its_checkpoints_are_named_for_its_stages(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path).checkpoints()
    assert [str(checkpoints.final(stage).relative_to(tmp_path / "run")) for stage in range(3)] == [
        "checkpoints/00-stage-1/final",
        "checkpoints/01-stage-2/final",
        "checkpoints/02-stage-3/final",
    ]
    assert not checkpoints.has(checkpoints.start())
