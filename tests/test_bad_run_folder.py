"""A run folder that was damaged, mixed up or made with something else: refused as ``tests/test_bad_input.py`` says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jasper_jax.recipe.load import parse_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.files import json_bytes, sealed, sha256_file
from tests.snapshots import snapshot
from tests.tiny import recipe, recipe_tree
from tests.training.runs import run_training

pytestmark = pytest.mark.usefixtures("quick_programs")

CHANGES: dict[str, Any] = {
    "teachers": [],
    "heads": {"fc1": {"dim": "teachers"}},
    "stages": [{"stage": 1, "steps": 2, "batch_size": 16, "learning_rate": 1e-2}],
    "training": {"shapes": 1, "save_every": 1, "evaluate_every": 1},
}
FINAL, START = "checkpoints/00-stage-1/final", "checkpoints/start/_CHECKPOINT_METADATA"
TEXTS, STORE = "texts/manifest.json", "vectors/b/manifest.json"


def tree(place: Path, run_dir: Path) -> dict[str, Any]:
    """One teacher, one head, one stage; fewer texts held out than a batch has."""
    made = recipe_tree(place, **CHANGES, run_dir=str(run_dir))
    made["teachers"] = [{"name": "b", "model": str(place / "teacher-b"), "dtype": "float32"}]
    made["texts"] = {**made["texts"], "held_out": 15}
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The place of a trained run, and what training said."""
    place = tmp_path_factory.mktemp("trained")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        recipe(place)  # models and texts
        assert run_training(Run(parse_recipe(tree(place, place / "run"), "tiny"), progress=False))
    return place, said.getvalue()


@pytest.fixture
def mine(trained: tuple[Path, str], tmp_path: Path) -> Path:
    """A recipe whose run folder is a copy of the trained one; the sources are a copy, too."""
    place, _ = trained
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)  # copies times of change as well
    for name in ("recipe.yaml", TEXTS, STORE, "vectors/b/spec.json"):
        path = tmp_path / "run" / name
        path.write_text(path.read_text().replace(str(place), str(tmp_path)))
        if path.suffix == ".json":
            change_json(name, lambda value: None)(tmp_path / "run")
    change_checkpoint(lambda found: found["recipe"].update(tree(tmp_path, tmp_path / "run")))(tmp_path / "run")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree(tmp_path, tmp_path / "run")))
    return path


def change_json(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Another content, its checksum made right again."""

    def spoil(run: Path) -> None:
        value = json.loads((run / name).read_text())
        change(value)
        (run / name).write_bytes(json_bytes(sealed(value) if "checksum" in value else value))

    return spoil


def change_checkpoint(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Another ``custom_metadata`` in every checkpoint, its checksums made right again."""

    def spoil(run: Path) -> None:
        for sums in run.glob("checkpoints/**/*.sha256.json"):
            folder = sums.with_name(sums.name.removesuffix(".sha256.json"))
            change_json("_CHECKPOINT_METADATA", lambda value: change(value["custom_metadata"]))(folder)
            seen = {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}
            sums.write_text(json.dumps(seen))

    return spoil


def shard(run: Path) -> Path:
    return next((run / "vectors" / "b").glob("*train*00000-of*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def garble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50] + b"\n{")


def test_the_copied_run_is_whole(call, mine: Path) -> None:
    """So that what is refused below is refused for what was done to it."""
    before = snapshot(mine.parent)
    assert call("train", mine)[0] == 0
    assert snapshot(mine.parent) == before


def half_export(run: Path) -> None:
    (run / "export").mkdir()
    (run / "export" / "thesis.doc").write_text("mine")


def kept_notes(run: Path) -> None:
    for name in ("jasper.json", "2_Dense_8/model.safetensors", ".git/HEAD"):
        (run / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "export" / name).write_text("{}")


def unfinished(spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Also take away the end of the stage: training would begin again, from ``start``."""

    def both(run: Path) -> None:
        spoil(run)
        (run / f"{FINAL}.sha256.json").unlink()

    return both


def moved_out(name: str) -> Callable[[Path], None]:
    """A link in its place, to a file or folder of somebody else."""

    def spoil(run: Path) -> None:
        place, victim = next(run.glob(name), run / name), run.parent / "victim"
        shutil.move(place, victim) if place.exists() else victim.mkdir()
        place.symlink_to(victim)

    return spoil


@pytest.mark.parametrize(
    ("command", "spoil", "message"),
    [
        *((command, moved_out(name), f"{name}: is a link out of ")
          for command, name in (("train", "checkpoints"), ("train", "checkpoints/start"), ("evaluate", "evaluations"),
                                ("train", "checkpoints/00-stage-1"), ("embed", "tensorboard"), ("export", "texts"),
                                ("embed", "vectors"), ("evaluate", "vectors/b"))),
        ("export", moved_out(f"{FINAL}/state/manifest.ocdbt"), "manifest.ocdbt: is a link to a file outside its"),
        ("export", moved_out(f"{FINAL}/state/d"), "'d' is not a folder inside"),
        ("train", moved_out("texts/texts-train.array_record-00000-of-*"), "is a link to a file outside its"),
        ("train", lambda run: shard(run).unlink(), "shard is missing; delete this file and embed again"),
        ("train", lambda run: cut(shard(run)), "bytes instead of"),
        ("vectors verify", lambda run: cut(shard(run)), "bytes instead of"),
        ("train", change_json(STORE, lambda m: m.update(texts="0" * 64)), "made from a text store with fingerprint"),
        ("train", change_json(STORE, lambda m: m["spec"]["teacher"].update(revision="x")), "teacher.revision ('x'"),
        ("train", change_json(STORE, lambda m: m["spec"]["prompts"].update(query="x")), "prompts.query ('x' there"),
        ("train", change_json(STORE, lambda m: m.update(format=9)), "format version 9, this program reads up to 1"),
        ("train", change_json(STORE, lambda m: m.update(format="9")), "not the manifest of a vector store (format: "),
        ("train", change_json(STORE, lambda m: m.pop("spec")), "not the manifest of a vector store (spec: Field"),
        ("train", change_json(STORE, lambda m: m["shards"].pop()), "its 5 shards are not the 6"),
        ("train", change_json(TEXTS, lambda m: m["shards"].pop()), "not the manifest of a text store"),
        ("train", change_json(TEXTS, lambda m: m.update(format=9)), "format version 9"),
        ("train", change_json(TEXTS, lambda m: m["shards"][0].update(file="../x")), "shards.0.file: "),
        ("embed", lambda run: (run / "recipe.yaml").write_bytes(b"# The"), "not empty and not a run folder"),
        ("train", lambda run: garble(run / "recipe.yaml"), "run/recipe.yaml"),
        ("export", lambda run: (run / f"{FINAL}.sha256.json").unlink(), "stage-1 is not finished; run jasper train"),
        ("export", lambda run: (run / f"{FINAL}.sha256.json").write_bytes(b"\xff"), "expected a list of checksums"),
        ("export", lambda run: (run / FINAL / "_CHECKPOINT_METADATA").unlink(), "_METADATA: the checkpoint is"),
        ("export", lambda run: (run / FINAL / "state" / "manifest.ocdbt").unlink(), "manifest.ocdbt: the checkpoint"),
        ("export", change_checkpoint(lambda m: m.update(format=2)), "checkpoint format 2, this program reads up to 1"),
        ("export", change_checkpoint(lambda m: m["recipe"].update(seed=7)), "another recipe: seed (7 there, 0"),
        ("train", unfinished(change_checkpoint(lambda m: m.update(format=2))), "start: checkpoint format 2, this"),
        ("train", unfinished(change_checkpoint(lambda m: m["recipe"].update(seed=7))), "another recipe: seed (7"),
        ("train", unfinished(lambda run: cut(run / START)), "start/_CHECKPOINT_METADATA: the checkpoint is"),
        ("evaluate", change_checkpoint(lambda m: m["recipe"].update(seed=7)),
         "start: the checkpoint belongs to another recipe: seed (7 there, 0"),
        ("export", half_export, "export: not empty and not an earlier export (no jasper.json)"),
        ("run", half_export, "export: not empty and not an earlier export (no jasper.json)"),
        ("export", kept_notes, "export/.git/HEAD: no export wrote this, and a new one would delete it; move it away"),
        ("run", kept_notes, "export/.git/HEAD: no export wrote this"),
        ("export", lambda run: (run / "export").write_text("mine"), "export: is a file; choose a folder"),
    ],
)  # fmt: skip
def test_what_is_refused_and_left_as_it_was(refused, mine: Path, command: str, spoil, message: str) -> None:
    spoil(mine.parent / "run")
    refused(message, *command.split(), mine)


def test_an_export_does_not_take_the_place_of_something_else(refused, mine: Path, tmp_path: Path) -> None:
    refused("not empty and not an earlier export", "export", mine, "--output", tmp_path / "run")
    refused("recipe.yaml: is a file; choose a folder with --output", "export", mine, "--output", mine)


def test_losses_on_held_out_texts_that_cannot_be_taken_are_said(call, trained: tuple[Path, str], mine: Path) -> None:
    said = "stage-1: no losses on held-out texts: stages[0].batch_size is 16, only 15 texts are held out"
    assert trained[1].count(said) == 1
    assert said in call("check", mine)[1]
    assert said not in call("check", mine, "texts.held_out=16")[1]


def test_a_lost_shard_is_made_again_by_embed_alone(call, mine: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path / "run" / "vectors")
    shard(tmp_path / "run").unlink()
    code, _, err = call("embed", mine)
    assert code == 0, err
    assert "b: shards or vectors are missing; only those are made" in err
    assert snapshot(tmp_path / "run" / "vectors") == before


def test_a_source_that_changed_after_the_store_was_built_is_noticed(call, refused, mine: Path, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    whole, times = source.read_bytes(), source.stat()
    source.write_bytes(whole + b'{"text": "one more", "kind": "query"}\n')
    refused("texts.jsonl: has changed (", "train", mine)
    source.write_bytes(whole.replace(b"river", b"RIVER"))
    refused("has changed (same size, different sha256)", "embed", mine)
    source.write_bytes(whole)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    assert call("train", mine)[0] == 0, "touched, not changed"
    source.unlink()
    assert call("train", mine)[0] == 0, "the store holds its texts"
    source.write_bytes(whole + b"\n")
    change_json(TEXTS, lambda m: m.pop("files"))(tmp_path / "run")
    assert call("train", mine)[0] == 0, "an earlier version recorded nothing"
