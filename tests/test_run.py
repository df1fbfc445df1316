"""A run as a whole: what it reads of its source folders, and when; settings that a run may be continued with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jasper_jax import Distilled, Embedder, UserError, distil, load_recipe, train_stages
from jasper_jax.commands import opening
from jasper_jax.encoders import folder as folders
from jasper_jax.evaluation import by_text
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import dump_recipe
from jasper_jax.reporting.page import has_packages
from jasper_jax.run import Run
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.student import start
from jasper_jax.student.start import load_student
from jasper_jax.training import loop
from tests.pages import run_group
from tests.snapshots import snapshot
from tests.tiny import recipe, recipe_tree
from tests.training.runs import parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")
FOLDERS = ("student", "teacher-a", "teacher-b")


def small(place: Path, **changes: Any) -> Recipe:
    """One stage of four steps, a checkpoint after the second."""
    stages = [{"stage": 3, "steps": 4, "batch_size": 16, "learning_rate": 1e-2}]
    training = {"shapes": 1, "save_every": 2, "evaluate_every": None}
    return recipe(place, **{"heads": {"fc1": {"dim": "teachers"}}, "stages": stages, "training": training, **changes})


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often a model folder is read, by its name, and ``weights``: the student's."""
    found: Counter[str] = Counter()
    steps, load = folders._steps, start.load_params
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_steps", lambda path: (found.update([Path(path).name]), steps(path))[1])
        patch.setattr(start, "load_params", lambda *one, **named: (found.update(["weights"]), load(*one, **named))[1])
        yield found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[str]]:
    """The place of a run that ``distil`` has finished, with what that read."""
    place = tmp_path_factory.mktemp("finished")
    made = small(place)
    (place / "recipe.yaml").write_text(dump_recipe(made))
    with counted() as read:
        distilled = distil(made)
    paths = [place / "run" / name for name in ("", "export", "evaluation.json", "report.html")]
    assert distilled == Distilled(*paths, made)
    assert all(path.exists() for path in paths)
    return place, read


def test_a_run_opens_nothing_until_it_is_asked(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    before = snapshot(tmp_path)
    with counted() as read:
        run = Run(made)
        assert (run.needs_vectors, run.trains_on_images) == (True, False)
        assert [stage.name for stage in run.stages] == ["stage-1", "stage-2", "stage-3"]
    assert (snapshot(tmp_path), read) == (before, Counter())


def test_jasper_run_reads_every_source_folder_once_and_the_students_weights_once(finished) -> None:
    _, read = finished
    assert {name: read[name] for name in (*FOLDERS, "weights")} == dict.fromkeys((*FOLDERS, "weights"), 1)


def test_a_call_from_python_takes_a_path_a_mapping_or_a_recipe_and_changes_none_of_them(finished) -> None:
    place, _ = finished
    tree = yaml.safe_load((place / "recipe.yaml").read_text())
    before = json.dumps(tree)
    made = load_recipe(tree, {"run_dir": place / "elsewhere", "stages[0].steps": np.int64(7), "seed": 2})
    assert (made.run_dir, made.stages[0].steps, made.seed, json.dumps(tree)) == (str(place / "elsewhere"), 7, 2, before)
    assert load_recipe(made, {"seed": 3}) == load_recipe(
        place / "recipe.yaml", [f"run_dir={place}/elsewhere", "stages.0.steps=7", "seed=3"]
    )
    result = distil(place / "recipe.yaml")  # complete, so nothing is done again
    assert json.loads(result.evaluation.read_text())["rows"]
    vectors = result.embedder(dtype="float32").encode(["a map", "the old river"], kind="query")
    np.testing.assert_array_equal(
        vectors, Embedder.load(result.export, dtype="float32").encode(["a map", "the old river"], "query")
    )


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("none.yaml", {}, "none.yaml: no such file"),
        ([1], {}, "expected a path, a mapping of keys to values or a Recipe, got a list"),
        ({"name": "a"}, {}, "the recipe: student: this key is required"),
        ({"name": object}, {}, "is a type; expected text, paths, numbers"),
        ({"name": "a"}, {"stages": [{"stepz": 3}]}, "did you mean 'steps'"),
        (
            {"stages": []},
            {"stages.2.steps": 5},
            "override 'stages.2.steps': stages.2 does not exist; the list is empty",
        ),
    ],
)
def test_a_wrong_call_is_a_user_error(source: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        distil(source, **changes)


def test_an_interrupted_call_saves_and_raises_keyboard_interrupt(finished, monkeypatch) -> None:
    """As the stop button of a notebook: the process and its own handler stay."""
    place, _ = finished
    stopped = place / "stopped"
    shutil.copytree(
        place / "run", stopped, ignore=lambda *_: {"checkpoints", "metrics.jsonl", "evaluation.json", "export"}
    )
    handler, begin = signal.getsignal(signal.SIGINT), loop.StageTrainer.train

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return begin(*arguments)

    monkeypatch.setattr(loop.StageTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt, match="saved; the same call continues"):
        distil(place / "recipe.yaml", run_dir=stopped)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [file.name for file in (stopped / "checkpoints").rglob("step-??????")] == ["step-000001"]


def test_the_page_of_python_runs_as_it_stands(finished, tmp_path: Path, monkeypatch, capsys) -> None:
    place, _ = finished
    (tmp_path / "configs").mkdir()
    for name in ("mine.yaml", "configs/quickstart.yaml"):
        shutil.copy(place / "recipe.yaml", tmp_path / name)
    (tmp_path / "runs").mkdir()
    shutil.copytree(place / "run", tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    names = run_group("notebook")
    assert names["vectors"].shape == names["targets"].shape == (32, 24)
    out = capsys.readouterr().out
    assert "stages[0].stepz: unknown key; did you mean 'steps'?" in out
    assert "Distilled(folder=" in out


def test_importing_the_package_imports_no_jax() -> None:
    program = (
        "import sys, jasper_jax; print(*({'jax', 'numpy', 'pydantic', 'rich'} & set(sys.modules)), dir(jasper_jax))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.startswith("[")
    assert "'distil'" in out


@pytest.mark.parametrize("command", ["check", "embed", "train", "vectors verify"])
def test_a_command_reads_a_source_folder_once(call, finished, command: str) -> None:
    place, _ = finished
    with counted() as read:
        code, _, err = call(*command.split(), place / "recipe.yaml")
    assert code == 0, err
    assert max(read[name] for name in FOLDERS) == 1, read


def test_evaluation_and_export_of_a_trained_run_need_no_starting_weights(call, finished, monkeypatch) -> None:
    place, _ = finished
    before = snapshot(place / "run")
    (place / "student" / "model.safetensors").rename(place / "weights")
    monkeypatch.setattr(start, "load_params", lambda *_, **__: pytest.fail("the starting weights were read"))
    try:
        for command in ("evaluate", "export"):
            with counted() as read:
                code, _, err = call(command, place / "recipe.yaml")
            assert code == 0, err
            assert (read["student"], max(read[name] for name in FOLDERS)) == (1, 1)
    finally:
        (place / "weights").rename(place / "student" / "model.safetensors")
    after = snapshot(place / "run")
    drawn = {"timings.json", "training.png", "dimensions.png", "contact-sheet.png", "report.html"}
    assert {name for name in before | after if before.get(name) != after.get(name)} <= drawn


def test_a_finished_run_does_nothing_twice(call, finished) -> None:
    place, _ = finished
    before = snapshot(place / "run")
    seconds = json.loads((place / "run" / "timings.json").read_text("utf-8"))
    code, _, err = call("run", place / "recipe.yaml")
    assert code == 0, err
    assert "jasper evaluate makes it again" in err
    assert "jasper export makes it again" in err
    after = snapshot(place / "run")
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {"timings.json"}
    again = json.loads((place / "run" / "timings.json").read_text("utf-8"))
    assert {name: again[name] for name in ("evaluation", "export")} == {n: seconds[n] for n in ("evaluation", "export")}


def test_a_run_ends_with_its_report(finished) -> None:
    run = finished[0] / "run"
    found = by_text.read(run / by_text.FILE)
    assert found is not None
    assert [(p.name, p.dim) for p in found.providers] == [
        ("after stage-3", 24),
        ("teacher a", 16),
        ("teacher b", 8),
        ("teachers concatenated", 24),
    ]
    assert (len(found.map), [np.array(d.counts).sum() for d in found.densities]) == (32, [32 * 31 // 2] * 3)
    if has_packages():
        assert "tiny" in (run / "report.html").read_text("utf-8")


def test_results_are_kept_by_data_set(call, finished, tmp_path: Path) -> None:
    place, _ = finished
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (tmp_path / "p.csv").write_text("query,passage\nwhat is a map,a map\nwhat is a river,the river\n", "utf-8")
    (tmp_path / "q.csv").write_text("query,passage\nwhat is a map,the old map\n", "utf-8")

    def evaluate(name: str, file: str) -> None:
        test = f"evaluation.retrieval=[{{name: {name}, pairs: {{csv: {tmp_path / file}}}}}]"
        code, _, err = call("evaluate", place / "recipe.yaml", f"run_dir={run}", test)
        assert code == 0, err

    evaluate("mine", "p.csv")
    evaluate("mine", "q.csv")
    evaluate("mine", "p.csv")
    kept = run / "evaluations"
    assert sorted(path.name for path in kept.glob("*.json")) == ["held-out.json", "mine-2.json", "mine.json"]
    assert (run / "evaluation.json").read_bytes() == (kept / "mine.json").read_bytes()
    rows = json.loads((kept / "mine-2.json").read_text("utf-8"))["rows"]
    assert rows[0]["retrieval"]["mine"]["queries"] == 1


def test_a_further_stage_after_a_finished_run_is_that_of_a_run_with_both(finished, tmp_path: Path) -> None:
    place, _ = finished
    stage = {"stage": 3, "steps": 4, "batch_size": 16, "learning_rate": 1e-2}
    stages = [stage, {**stage, "name": "more", "steps": 2}]
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    longer = small(place, run_dir=str(run), stages=stages)
    assert run_training(Run(longer, progress=False))
    # Of the same vectors: a further stage has more texts embedded, in other batches, which round otherwise.
    both = small(place, run_dir=str(tmp_path / "both"), stores=str(run), stages=stages)
    assert run_training(Run(both, progress=False))
    expected = parameters(Run(both, progress=False), 1)
    for name, leaf in parameters(Run(longer, progress=False), 1).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def test_what_is_saved_before_training_are_the_starting_parameters(finished) -> None:
    place, _ = finished
    run = Run(small(place), progress=False)
    _, expected, _ = load_student(run.recipe, run.teacher_dim, run.student)
    saved = parameters(run, -1)
    for name, leaf in flatten(expected).items():
        np.testing.assert_array_equal(saved[name], leaf, err_msg=name)


def test_a_run_is_continued_with_recomputation_switched_on(finished, tmp_path: Path) -> None:
    place, _ = finished
    changes = {"run_dir": str(tmp_path / "run"), "stores": str(place / "run")}
    student = recipe_tree(place)["student"]
    assert not run_training(Run(small(place, **changes), progress=False), stop=lambda step: step >= 2)
    saved = Run(small(place, student={**student, "remat": "dots"}, **changes), progress=False)
    with counted() as read:
        assert run_training(saved)
    assert (read["student"], read["weights"]) == (1, 0), "the checkpoint has them"
    assert yaml.safe_load((saved.folder / "recipe.yaml").read_text())["student"]["remat"] == "dots"
    expected = parameters(Run(small(place), progress=False), 0)
    for name, leaf in parameters(saved, 0).items():
        np.testing.assert_allclose(leaf, expected[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("backend", "said"), [("torch", "false"), ("jax", None)])
def test_jax_leaves_memory_of_the_gpu_to_pytorch(tmp_path: Path, monkeypatch, backend: str, said: str | None) -> None:
    """The mesh comes before the texts are embedded, and with it JAX's share of the memory."""

    def stop(_: object) -> None:
        raise Interrupted

    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    monkeypatch.setattr(opening, "open_run", stop)
    teacher = {"name": "a", "model": "somewhere", "dim": 8, "backend": backend}
    with pytest.raises(Interrupted):
        train_stages(recipe(tmp_path, teachers=[teacher]))
    assert os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE") == said
