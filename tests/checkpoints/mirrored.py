"""Run folders whose checkpoints are files of text, and what a mirror has of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.runtime.files import sha256_file
from jasper_jax.runtime.remote import Store

URL = "memory://bucket/run"
FIRST, SECOND, END = "00-one/step-000002", "00-one/step-000004", "00-one/final"


def write_checkpoint(run: Path, name: str, text: str = "") -> None:
    """What counts as a checkpoint: a folder of files, and their checksums beside it."""
    folder = run / "checkpoints" / name
    (folder / "state").mkdir(parents=True)
    for file in ("manifest", "state/array"):
        (folder / file).write_text(f"{name} {file} {text}")
    sums = {f: sha256_file(folder / f) for f in ("manifest", "state/array")}
    folder.with_name(folder.name + ".sha256.json").write_text(json.dumps(sums))


def remove_checkpoint(run: Path, name: str) -> None:
    folder = run / "checkpoints" / name
    folder.with_name(folder.name + ".sha256.json").unlink()
    shutil.rmtree(folder)


def checkpoints(run: Path) -> dict[str, str]:
    """All files of a run's checkpoints."""
    top = run / "checkpoints"
    return {str(p.relative_to(top)): p.read_text() for p in sorted(top.rglob("*")) if p.is_file()}


def whole(run: Path) -> set[str]:
    """The checkpoints of a run that count; each is to the byte what was written."""
    top, found = run / "checkpoints", set()
    for sums in top.rglob("*.sha256.json"):
        folder = sums.with_name(sums.name.removesuffix(".sha256.json"))
        for file, digest in json.loads(sums.read_text()).items():
            assert sha256_file(folder / file) == digest
        found.add(str(folder.relative_to(top)))
    return found


def attached(run: Path) -> Mirror:
    mirror = Mirror(URL, run)
    mirror.attach()
    return mirror


class Cut(Exception):
    """The process is gone."""


def cut_after(operations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that takes so many objects or deletions and no more; sending several files ends among them."""
    left = iter(range(operations))

    def one() -> None:
        if next(left, None) is None:
            raise Cut

    def counted(name: str):
        real = getattr(Store, name)

        def call(self: Store, *arguments):
            one()
            return real(self, *arguments)

        return call

    real_send, real_remove = Store.send, Store.remove

    def send(self: Store, folder: Path, names: list[str], to: str) -> None:
        for name in names:
            one()
            real_send(self, folder, [name], to)

    def remove_below(self: Store, folder: str) -> None:
        for name in self.names(folder):
            one()
            real_remove(self, f"{folder}/{name}")

    for name in ("write", "remove"):
        monkeypatch.setattr(Store, name, counted(name))
    monkeypatch.setattr(Store, "send", send)
    monkeypatch.setattr(Store, "remove_below", remove_below)
