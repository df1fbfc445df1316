"""A model folder of a stranger: what is read from it is in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jasper_jax.assets.models import model_identity
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside, refuse_links
from jasper_jax.teachers.torch_teacher import TorchEncoder
from tests.tiny import write_model

READ = (
    *("config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"),
    *("config_sentence_transformers.json", "1_Pooling/config.json", "model.safetensors"),
)


def load(folder: Path) -> None:
    Embedder.load(folder)
    model_identity(str(folder), None, folder)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "model")
    for name in READ:
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    load(folder)
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_not_read(name: str, model: Path, tmp_path: Path) -> None:
    """The content is right: only where it is makes the difference."""
    (model / name).rename(tmp_path / "private")
    (model / name).symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=rf"{name}: is a link to a file outside its folder; put the file itself there"):
        load(model)


@pytest.mark.parametrize("name", ["modules.json", "model.safetensors"])
def test_what_is_no_file_is_not_waited_for(name: str, model: Path) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    with pytest.raises(UserError, match="is not a regular file"):
        file_inside(model / name)
    (model / name).unlink()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is not a regular file"):
        file_inside(model / name)


@pytest.mark.parametrize("name", ["1_Pooling", "2_Dense_8"])
def test_a_linked_folder_is_not_read(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(model / name, ignore_errors=True)
    (model / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"'{name}' is not a folder inside"):
        read_model_folder(model)


def test_a_link_within_the_folder_and_a_linked_folder_of_the_user_are_read(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "weights-2.safetensors")
    (model / "model.safetensors").symlink_to("weights-2.safetensors")
    (tmp_path / "current").symlink_to(model)
    load(tmp_path / "current")


def hub_snapshot(model: Path, place: Path) -> Path:
    """``model`` as the hub's cache has it: every file a link to a blob."""
    repo = place / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "abc"
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, repo / "blobs" / str(number))
        link.symlink_to(os.path.relpath(repo / "blobs" / str(number), link.parent))
    return snapshot


def test_the_links_of_the_hubs_cache_are_read(model: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(model, tmp_path)
    load(snapshot)
    refuse_links(snapshot)


def test_a_folder_that_looks_like_the_hubs_cache_leads_nowhere_else(model: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(model, tmp_path)
    blobs = snapshot.parents[1] / "blobs"
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(blobs / "key")
    (blobs / "key").symlink_to(tmp_path / "private" / "key")  # a blob that is a link itself
    with pytest.raises(UserError, match="is a link to a file outside"):
        load(snapshot)
    shutil.rmtree(blobs)
    blobs.symlink_to(tmp_path / "private")  # all blobs elsewhere
    with pytest.raises(UserError, match="is a link to a file outside"):
        load(snapshot)


PLANTED: list[Callable[[Path, Path], Any]] = [
    lambda model, private: (model / "vocab.txt").symlink_to(private),
    lambda model, private: (model / "1_Pooling" / "more").symlink_to(private.parent),
    lambda model, private: os.mkfifo(model / "added_tokens.json"),
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_library_is_given_a_folder_without_links_out_of_it(plant: Callable, model: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("a key")
    plant(model, private)
    teacher: Any = SimpleNamespace(name="a", dim=None, max_length=None)
    with pytest.raises(UserError, match="outside its folder|is not a folder inside|is not a regular file"):
        TorchEncoder(teacher, model, {})(["text"], ["query"])


def test_the_tokenizer_reads_no_other_file_than_its_own(model: Path, tmp_path: Path) -> None:
    """A vocabulary under the names that transformers reads has no way into what is saved."""
    (tmp_path / "private").write_text("BEGIN PRIVATE KEY")
    for name in ("vocab.txt", "merges.txt", "added_tokens.json"):
        (model / name).symlink_to(tmp_path / "private")
    Tokenizer.load(model).save(tmp_path)
    assert "PRIVATE" not in (tmp_path / "tokenizer.json").read_text()
