"""What is used is what was checked: private caches, contents compared, downloads no longer than said."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
import requests

from jasper_jax.assets import hub, package_index
from jasper_jax.assets.cache import asset_folder, download_folder, fetch_asset
from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.assets.models import model_identity, resolve_model
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.program_cache import cache_programs
from jasper_jax.runtime.user_cache import private_cache
from tests.assets.index_server import IndexServer
from tests.assets.small_assets import MODEL, TEXTS, small_catalogue


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[IndexServer]:
    with small_catalogue(monkeypatch, tmp_path) as server:
        yield server


def flip(path: Path) -> None:
    """Change a bit, and let size and modification time be what they were."""
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


# ----------------------------------------------------------------------------------------- changed files


def test_a_flipped_bit_of_a_cached_model_is_noticed_and_it_is_fetched_again(server: IndexServer) -> None:
    weights = fetch_asset("tiny-model", progress=False) / "model.safetensors"
    flip(weights)
    folder = fetch_asset("tiny-model", progress=False)
    assert weights.read_bytes() == MODEL["model.safetensors"]
    sums = model_identity("tiny-model", None, folder)["sha256"]
    assert sums["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_changed_asset_that_cannot_be_fetched_again_is_refused(server: IndexServer) -> None:
    flip(fetch_asset("texts", progress=False) / "a.txt")
    server.projects.clear()
    with pytest.raises(UserError, match="'texts' could not be fetched"):
        fetch_asset("texts", progress=False)


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model as the hub's cache has it: links to files that are named by their hash."""
    import huggingface_hub

    repository = tmp_path / "hub" / "models--org--name"
    folder = repository / "snapshots" / "c0ffee"
    (repository / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    config = b'{"model_type": "bert"}'
    blobs = {
        "model.safetensors": (hashlib.sha256(b"weights").hexdigest(), b"weights"),
        "config.json": (hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest(), config),
    }
    for name, (blob, data) in blobs.items():
        (repository / "blobs" / blob).write_bytes(data)
        (folder / name).symlink_to(Path("../../blobs") / blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_the_hub_s_cache_is_noticed(snapshot: Path, name: str) -> None:
    assert resolve_model("org/name", progress=False) == snapshot
    flip((snapshot / name).resolve())
    with pytest.raises(UserError, match=rf"{name}: has changed since it was downloaded; delete .*blobs.* run again"):
        resolve_model("org/name", progress=False)


def test_a_hub_cache_without_links_is_used(snapshot: Path) -> None:
    for path in list(snapshot.iterdir()):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    hub.refuse_changed(snapshot)


# ------------------------------------------------------------------------------------------------ caches


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX modes")
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_cache_that_others_may_write_is_refused(
    server: IndexServer, tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fetch_asset("texts", progress=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("the programs of others would be run"))
    said = rf"{re.escape(str(cache))}.*: other users may write it \(mode {mode:o}\).*chmod go-w"
    cache.chmod(mode)
    for use in (lambda: fetch_asset("texts", progress=False), cache_programs, lambda: private_cache("tokenizers")):
        with pytest.raises(UserError, match=said):
            use()
    cache.chmod(0o755)
    (cache / "compiled").mkdir()
    (cache / "compiled").chmod(mode)
    with pytest.raises(UserError, match=said):
        cache_programs()
    assert (asset_folder(CATALOGUE["texts"]) / "a.txt").read_bytes() == TEXTS["a.txt"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX owners")
def test_a_cache_of_another_user_is_refused_and_one_of_root_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner:
        with pytest.raises(UserError, match=rf"belongs to another user \(number {owner}\).*JASPER_CACHE"):
            private_cache("compiled")
    else:
        private_cache("compiled")


def test_new_caches_are_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path / "new"))
    before = os.umask(0)
    try:
        folder = private_cache("compiled")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder)] == [0o700, 0o700]


# --------------------------------------------------------------------------------------------- downloads


def test_a_download_ends_where_the_catalogue_says(server: IndexServer, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    name = "texts-1.0.tar.gz"
    archive = server.projects["texts"][name]
    server.listed[name] = hashlib.sha256(archive).hexdigest()
    server.projects["texts"][name] = archive + bytes(20_000_000)
    update = package_index._Progress.update
    monkeypatch.setattr(
        package_index._Progress, "update", lambda self, size: (written.append(size), update(self, size))
    )
    with pytest.raises(UserError, match=rf"its {name} is longer than {len(archive):,} bytes"):
        fetch_asset("texts", progress=False)
    assert len(archive) < sum(written) < len(archive) + 200_000
    assert list(download_folder(CATALOGUE["texts"]).iterdir()) == []


def test_an_index_elsewhere_names_no_file_of_this_machine(server: IndexServer, tmp_path: Path) -> None:
    (tmp_path / "private").write_text('<a href="private">texts-1.0.tar.gz</a>')
    moved = {"Location": (tmp_path / "private").as_uri()}
    server.answer = lambda request: server.send(request, 302, headers=moved)
    index, (archive,) = package_index.Index.parse(server.url), CATALOGUE["texts"].archives
    with pytest.raises(requests.exceptions.InvalidSchema, match="No connection adapters"):
        package_index._download_from(index, archive, str(tmp_path / "got"), False, None)


@pytest.mark.parametrize("status", [200, 302, 404])
@pytest.mark.parametrize("packing", ["gzip", None])
def test_a_page_of_an_index_is_no_longer_than_pages_are(server: IndexServer, status: int, packing: str | None) -> None:
    """It was read whole, and unpacked: 3 MB of a redirect, an error or a page took 6 GB."""
    large = bytes(40_000_000)
    body = gzip.compress(large, 1) if packing else large
    headers = {"Content-Type": "text/html", "Location": "elsewhere"} | (
        {"Content-Encoding": packing} if packing else {}
    )

    def answer(request: Any) -> None:
        with contextlib.suppress(OSError):  # the connection is closed before all is sent
            if request.path.endswith("elsewhere"):
                server.send(request, 404)
            else:
                server.send(request, status, body, headers)

    server.answer = answer
    tracemalloc.start()
    try:
        with pytest.raises(
            UserError, match="its page is longer than 4,194,304 bytes" if status != 302 else "no project"
        ):
            fetch_asset("texts", progress=False)
        # the server is in this process
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_page_of_an_index_that_is_nested_too_deeply(server: IndexServer) -> None:
    headers = {"Content-Type": "application/vnd.pypi.simple.v1+json"}
    server.answer = lambda request: server.send(request, 200, b"[" * 100_000, headers)
    with pytest.raises(UserError, match="not a Simple API"):
        fetch_asset("texts", progress=False)


@pytest.mark.parametrize("revision", ["../../../../ref", "{}/ref", "a/../../ref", "..", "a\nb", "", "a:b"])
def test_a_revision_leads_to_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    """The hub's library read the file in place of a branch, and took the folder that it named for the model."""
    monkeypatch.setattr(hub, "snapshot", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(UserError, match="revision .* is none; expected a commit, a branch or a tag"):
        resolve_model("org/name", revision.format(tmp_path))


@pytest.mark.parametrize("revision", [None, "main", "c0ffee", "v1.0.2", "refs/pr/1", "a_b-c+d@2.0"])
def test_revisions_of_the_hub_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    monkeypatch.setattr(hub, "snapshot", lambda _, asked, **__: tmp_path / str(asked))
    assert resolve_model("org/name", revision) == tmp_path / str(revision)
