"""What the name of a model stands for, and what tells one model from another."""

from __future__ import annotations

import json
import re

import pytest

from jasper_jax.assets import hub, models
from jasper_jax.assets.cache import asset_folder, fetch_asset
from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.assets.models import model_identity, resolve_model
from jasper_jax.runtime.errors import UserError
from tests.assets.small_assets import MODEL, sha256, small_catalogue


@pytest.fixture
def server(monkeypatch, tmp_path):
    with small_catalogue(monkeypatch, tmp_path) as server:
        yield server


def test_what_a_model_s_name_stands_for(server, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(hub, "snapshot", lambda repo, revision, **_: asked.append((repo, revision)) or tmp_path)
    assert resolve_model("tiny-model", progress=False) == asset_folder(CATALOGUE["tiny-model"])
    (tmp_path / "org" / "local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/local").samefile(tmp_path / "org" / "local")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert asked == []
    assert resolve_model("org/name", "v2") == tmp_path
    assert asked == [("org/name", "v2")]


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("tiny-modle", None, "or an asset; did you mean 'tiny-model'?"),
        ("./nowhere", None, "is not a folder"),
        ("a/b/c", None, "is not a folder, a hub id (org/name) or an asset"),
        ("texts", None, "'texts' is a corpus, not a model; the models are tiny-model"),
        ("tiny-model", "v1", "revision 'v1' is set for asset 'tiny-model'"),
        (".", "v1", "revision 'v1' is set for folder '.'"),
        ("org/tiny", None, "hub org/tiny@None: no network; the asset 'tiny-model' is this model"),
        ("org/else", "v1", "hub org/else@v1: no network; or give a local folder"),
    ],
)
def test_names_that_stand_for_nothing(server, name, revision, message):
    with pytest.raises(UserError, match=re.escape(message)):
        resolve_model(name, revision)


def test_an_unknown_asset_names_the_nearest(server):
    with pytest.raises(UserError, match=r"no asset 'text'; did you mean 'texts'\?; the assets are texts, tiny"):
        fetch_asset("text")


def test_the_identity_of_an_asset_comes_from_its_record(server, monkeypatch):
    folder = resolve_model("tiny-model", progress=False)
    monkeypatch.setattr(models, "sha256_once", None)  # nothing is read again
    sums = {name: sha256(MODEL[name]) for name in ("model.safetensors", "tokenizer.json")}
    assert model_identity("tiny-model", None, folder) == {
        "id": "tiny-model",
        "revision": "1.0",
        "sha256": sums,
    }


def test_the_identity_of_a_folder_is_computed(tmp_path):
    folder = tmp_path / "snapshots" / ("a" * 40)
    (folder / "2_Dense").mkdir(parents=True)
    files = {
        "model.safetensors": b"1",
        "2_Dense/model.safetensors": b"2",
        "vocab.txt": b"3",
        "config.json": b"4",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    identity = model_identity("org/name", "main", folder)
    assert identity["id"] == "org/name"
    assert identity["revision"] == "a" * 40  # the commit that "main" was
    wanted = ["2_Dense/model.safetensors", "model.safetensors", "vocab.txt"]
    assert identity["sha256"] == {name: sha256(files[name]) for name in wanted}
    (folder / "tokenizer.json").write_bytes(b"5")  # the tokenizer's first form counts
    assert "vocab.txt" not in model_identity("x", None, folder)["sha256"]
    assert json.loads(json.dumps(identity)) == identity
