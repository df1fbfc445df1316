"""A place that results cannot go to: refused before any work, with nothing of what is there lost or added to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from jasper_jax.checkpoints.export_marker import MARKER
from jasper_jax.export.sentence_transformers import refuse_foreign
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sealed
from jasper_jax.runtime.paths import real_folder
from jasper_jax.teachers.negatives import NegativeStore
from tests.tiny import recipe_tree, write_model

TOO_LONG = "x" * 300


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(tmp_path)))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run_dir={}/texts.jsonl", "texts.jsonl: is a file, not a folder; choose another with run_dir=..."),
        ("run_dir={}/texts.jsonl/run", "texts.jsonl: is a file, not a folder; choose another with run_dir=..."),
        ("run_dir={}/" + TOO_LONG, "File name too long"),
        ("run_dir={}/student", "student: not empty and not a run folder"),
        ("run_dir={}", "not empty and not a run folder"),
        ("stores={}/texts.jsonl", "texts.jsonl: is a file, not a folder; choose another with stores=..."),
        ("stores={}/texts.jsonl/x", "texts.jsonl: is a file, not a folder; choose another with stores=..."),
    ],
)
@pytest.mark.parametrize("command", ["embed", "train", "run"])
def test_folders_that_a_run_cannot_have(refused, tiny: Path, tmp_path: Path, command: str, change, message) -> None:
    refused(message, command, tiny, change.format(tmp_path))
    assert not list(tmp_path.rglob(".lock")), "not even a lock"


def test_a_store_that_is_something_else_is_left_alone(refused, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "texts").mkdir(parents=True)
    (tmp_path / "other" / "texts" / "thesis.tex").write_text("years of work")
    leaves = ("run", "run/recipe.yaml")
    refused("texts: not a text store", "embed", tiny, f"stores={tmp_path / 'other'}", leaves=leaves)


def test_negatives_are_not_put_among_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.npy").write_text("an array of somebody else")
    with pytest.raises(UserError, match="not empty and not a store of negatives .no spec.json.; move what is there"):
        NegativeStore(tmp_path, {}, {"train": 1, "held_out": 0}, 1).pin()
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000-of-00001.npy"]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder.npy", "folder.npy: is a folder; give the name of a .npy file"),
        ("texts.txt/v.npy", "texts.txt: is a file, not a folder; give another file"),
        ("texts.npy", "texts.npy: this command reads it, and the result would overwrite it"),
        ("linked.npy", "linked.npy: this command reads it, and the result would overwrite it"),
        ("pipe.npy", "pipe.npy: is a pipe or a device, which the result would replace; give the name of a .npy file"),
        (TOO_LONG + ".npy", "File name too long; give another file"),
        ("vectors.txt", "expected a file name that ends in .npy"),
    ],
)
def test_files_that_vectors_cannot_go_to(refused, tmp_path: Path, output: str, message: str) -> None:
    model = write_model(tmp_path / "model")
    for name in ("texts.txt", "texts.npy"):
        (tmp_path / name).write_text("a map\n")
    (tmp_path / "folder.npy").mkdir()
    os.link(tmp_path / "texts.npy", tmp_path / "linked.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    refused(message, "encode", model, tmp_path / "texts.npy", tmp_path / output)


@pytest.mark.parametrize("output", ["labels.csv", "sts.jsonl", "beir/qrels/test.tsv", "student/config.json", "linked"])
def test_scores_do_not_overwrite_what_they_are_of(refused, tmp_path: Path, output: str) -> None:
    write_model(tmp_path / "student")
    (tmp_path / "labels.csv").write_text("query,passage\na map,some water\n")
    (tmp_path / "sts.jsonl").write_text('{"query": "a map", "passage": "some water", "score": 1}\n')
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("q\tp\t1\n")
    for name in ("corpus", "queries"):
        (tmp_path / "beir" / f"{name}.jsonl").write_text(json.dumps({"_id": name[0], "text": "a map"}) + "\n")
    (tmp_path / "linked").symlink_to("labels.csv")
    tests = ["--pairs", tmp_path / "labels.csv", "--similarity", tmp_path / "sts.jsonl", "--beir", tmp_path / "beir"]
    message = f"{output}: this command reads it, and the result would overwrite it; give another file"
    refused(message, "evaluate", tmp_path / "student", *tests, "--output", tmp_path / output)


@pytest.mark.parametrize(
    "output", ["texts.jsonl", "recipe.yaml", "teacher-a/tokenizer.json", "pipe", "run/../texts.jsonl"]
)
def test_texts_do_not_overwrite_what_they_are_of(refused, tiny: Path, tmp_path: Path, output: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run").mkdir()
    message = "is a pipe or a device" if output == "pipe" else "this command reads it"
    refused(message, "texts", "export", tiny, tmp_path / output)


@pytest.mark.parametrize("place", [".", "./", "..", "/", "here/..", "there"])
def test_an_export_does_not_replace_the_folder_it_is_started_in(place: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="this command runs in it"):
        refuse_foreign(real_folder(Path(place)))


def test_vectors_may_replace_vectors_and_go_to_a_new_folder(call, tmp_path: Path) -> None:
    model, texts = write_model(tmp_path / "model"), tmp_path / "texts.txt"
    texts.write_text("a map\n")
    for output in ("new/v.npy", "new/v.npy"):
        assert call("encode", model, texts, tmp_path / output)[0] == 0
        assert np.load(tmp_path / output).shape == (1, 16)


def test_places_that_an_export_cannot_go_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty")
    refuse_foreign(tmp_path / "not" / "there" / "yet")
    for place, message in {
        "file": "is a file; choose a folder with --output",
        "file/export": "file: is a file, not a folder; choose another with --output",
        TOO_LONG: "File name too long; choose another with --output",
    }.items():
        with pytest.raises(UserError, match=message):
            refuse_foreign(tmp_path / place)
    (tmp_path / "empty" / MARKER).write_text("{}")
    with pytest.raises(UserError, match=r"jasper.json: no export wrote this"):
        refuse_foreign(tmp_path / "empty")
    (tmp_path / "empty" / MARKER).write_text(json.dumps({"made_by": "jasper_jax", "sha256": {"config.json": "0"}}))
    (tmp_path / "empty" / "config.json").write_text("{}")
    refuse_foreign(tmp_path / "empty")
    (tmp_path / "empty" / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="dangling: no export wrote this"):
        refuse_foreign(tmp_path / "empty")
    (tmp_path / "empty" / "dangling").unlink()
    (tmp_path / "empty" / "README.md").symlink_to(tmp_path / "file")
    with pytest.raises(UserError, match=r"README.md: no export wrote this"):
        refuse_foreign(tmp_path / "empty")
    (tmp_path / "empty" / "README.md").unlink()
    (tmp_path / "empty" / "tokenizer.json").write_text("mine")  # a name of an export, but not of this one
    with pytest.raises(UserError, match=r"tokenizer.json: no export wrote this"):
        refuse_foreign(tmp_path / "empty")


@pytest.mark.parametrize("place", [".model.old", ".model.partial"])
def test_what_stands_where_an_export_is_prepared_stays(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "model.safetensors.writing").write_text("of a killed export")
    refuse_foreign(tmp_path / "model")
    (tmp_path / place / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=rf"{place}/thesis.tex: no export wrote this"):
        refuse_foreign(tmp_path / "model")


def test_an_export_of_a_later_format_is_not_read(refused, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("a map\n")
    for value in (9, None, "1"):
        (model / MARKER).write_text(json.dumps(sealed({"format": value, "sha256": {}})))
        message = f"jasper.json: an export of format {value!r}, this program reads up to 1; install a newer"
        refused(message, "encode", model, tmp_path / "texts.txt", tmp_path / "v.npy")
