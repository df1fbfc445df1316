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


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("folder.npy", "folder.npy: is a folder; give the name of a .npy file"),
        ("texts.txt/v.npy", "texts.txt: is a file, not a folder; give another file"),
        ("texts.npy", "texts.npy: is the file of the texts, which the vectors would overwrite"),
        ("linked.npy", "linked.npy: is the file of the texts, which the vectors would overwrite"),
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
    refused(message, "encode", model, tmp_path / "texts.npy", tmp_path / output)


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
