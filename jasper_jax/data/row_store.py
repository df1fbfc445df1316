"""What the text store and the pair store share: rows in splits, built once in a folder, read at random.

    rows ─► shards of each split in ``.name.building`` ─► manifest ─► renamed to ``name`` when whole

A lock makes processes that want the same store wait for the one that builds it. A store is refused where it was built
from another recipe, or where the files it was built from have changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel, model_validator

from jasper_jax.data import shards as sh
from jasper_jax.data.source_files import SourceFile, changed_files
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say

R = TypeVar("R")


class RowManifest(sh.StoreManifest):
    """``manifest.json`` of such a store; a subclass adds its settings."""

    KEY: ClassVar[str]
    """What the store holds, and the key of the settings it was built from: ``texts`` or ``images``."""
    SPLITS: ClassVar[tuple[str, ...]]

    seed: int
    counts: dict[str, dict[str, Any]]
    notes: list[str]
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
    """The local source files the store was built from; none were recorded before they were compared."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if set(self.splits) != set(self.SPLITS):
            raise ValueError(f"splits are {', '.join(self.splits)}; {', '.join(self.SPLITS)} are needed")
        rows = getattr(self, self.KEY).shard_rows
        if sum(-(-size // rows) for size in self.splits.values()) != len(self.shards):
            raise ValueError(f"{len(self.shards)} shards are recorded, another number holds the splits' rows")
        map_ = sh.shard_map(self.splits, rows)
        if wrong := sh.other_shards([s.model_dump() for s in self.shards], map_, self.KEY):
            raise ValueError(wrong)
        return self


class RowStore(Generic[R]):
    """A store in ``folder``: random access to its rows, safe among threads, picklable."""

    WHAT: ClassVar[str]
    ROWS: ClassVar[str]
    """What its rows are called, also in the shards' file names."""
    FORMAT: ClassVar[int]
    MANIFEST: ClassVar[type[RowManifest]]

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = Path(folder), manifest
        splits = self.MANIFEST.SPLITS
        sizes = {split: manifest["splits"][split] for split in splits}
        self.shards = sh.shard_map(sizes, manifest[self.MANIFEST.KEY]["shard_rows"])
        names = {shard: entry["file"] for shard, entry in zip(self.shards, manifest["shards"], strict=True)}
        self._reader = sh.ShardReader(self.folder, names, self._remedy(), splits=splits)

    @classmethod
    def _remedy(cls) -> str:
        return f"restore the file, or delete the folder and build the {cls.WHAT} again"

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a finished store; UserError when it is missing, incomplete, or of a later format."""
        manifest = files.read_manifest(Path(folder), cls.WHAT, cls.FORMAT, cls.MANIFEST)
        files.check_files(Path(folder), manifest["shards"], cls._remedy())
        return cls(Path(folder), manifest)

    @staticmethod
    def parse(record: bytes) -> R:
        """The row of a record."""
        raise NotImplementedError

    @staticmethod
    def digested(row: R) -> bytes:
        """What of the row goes into the fingerprint."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """sha256 over every row and the shard map: what vectors are aligned with."""
        return self.manifest["fingerprint"]

    def size(self, split: str) -> int:
        return self._reader.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> list[R]:
        return [self.parse(record) for record in self._reader.read(split, indices)]

    def read_shard(self, shard: sh.ShardInfo) -> list[R]:
        return [self.parse(record) for record in self._reader.read_shard(shard)]

    def verify(self) -> None:
        """Read everything: UserError when a file's sha256 or the fingerprint is not the recorded one."""
        digests = {split: hashlib.sha256() for split in self.MANIFEST.SPLITS}
        for shard, entry in zip(self.shards, self.manifest["shards"]):
            path = self.folder / entry["file"]
            if (seen := files.sha256_file(path)) != entry["sha256"]:
                raise UserError(f"{path}: sha256 is {seen}, the manifest says {entry['sha256']}; {self._remedy()}")
            for row in self.read_shard(shard):
                digests[shard.split].update(self.digested(row))
        seen = _fingerprint({k: d.hexdigest() for k, d in digests.items()}, self.shards)
        if seen != self.fingerprint:
            raise UserError(
                f"{self.folder}: fingerprint is {seen}, the manifest says {self.fingerprint}; {self._remedy()}"
            )

    def summary(self) -> list[str]:
        """What became of what the sources gave, and notes: for people."""
        raise NotImplementedError

    def refuse_other(self, settings: BaseModel, seed: int, patterns: Sequence[str]) -> None:
        """UserError when it was not built from these settings, or when its source files have changed since."""
        key = self.MANIFEST.KEY
        recorded = type(settings).model_validate(self.manifest[key]).model_dump(mode="json")
        different = files.differences(recorded, settings.model_dump(mode="json"), key)
        different += files.differences(self.manifest["seed"], seed, "seed")
        if different:
            raise UserError(
                f"{self.folder}: was built with another recipe: {'; '.join(different)}; use another run_dir, or "
                f"delete the folder (the vectors made from it become useless)"
            )
        known = [SourceFile.model_validate(file) for file in self.manifest.get("files", [])]
        if changed := changed_files(known, patterns):
            more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
            raise UserError(
                f"{changed[0]} after {self.folder} was built from it{more}; "
                f"put the file back as it was, or set run_dir=... to build from what is there now"
            )


S = TypeVar("S", bound=RowStore)


def _fingerprint(digests: Mapping[str, str], shards: Sequence[sh.ShardInfo]) -> str:
    content = {"rows": digests, "shards": [list(s) for s in shards]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class SplitWriter:
    """Writes one split's shards as its rows come; their names, given last, hold the number of shards."""

    def __init__(self, folder: Path, split: str, shard_rows: int, *, compress: bool):
        self.folder, self.split, self.shard_rows, self.compress = folder, split, shard_rows, compress
        self.digest, self.parts, self.rows = hashlib.sha256(), [], 0

    def write(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take rows, each a record and what of it goes into the fingerprint."""
        pending: list[bytes] = []
        for record, digested in rows:
            self.digest.update(digested)
            pending.append(record)
            self.rows += 1
            if len(pending) == self.shard_rows:
                self._flush(pending)
                pending = []
        if pending:
            self._flush(pending)

    def _flush(self, records: list[bytes]) -> None:
        part = self.folder / f"{self.split}-{len(self.parts):05d}.part"
        sh.write_records(part, records, compress=self.compress)
        self.parts.append(part)


def finish(folder: Path, name: str, writers: Mapping[str, SplitWriter], shard_rows: int) -> dict[str, Any]:
    """Give the written shards their names; what a manifest says about them: splits, shards and fingerprint."""
    sizes = {split: writer.rows for split, writer in writers.items()}
    map_ = sh.shard_map(sizes, shard_rows)
    entries = []
    for shard, part in zip(map_, [p for w in writers.values() for p in w.parts], strict=True):
        path = part.rename(folder / sh.shard_file(name, shard, map_))
        size, digest = path.stat().st_size, files.sha256_file(path)
        entry = {"split": shard.split, "index": shard.index, "file": path.name, "rows": shard.rows}
        entries.append({**entry, "bytes": size, "sha256": digest})
    fingerprint = _fingerprint({k: w.digest.hexdigest() for k, w in writers.items()}, map_)
    return {"splits": sizes, "shards": entries, "fingerprint": fingerprint}


def build_or_open(
    kind: type[S], folder: Path, build: Callable[[Path], None], check: Callable[[S], None], *, progress: bool
) -> S:
    """The store in ``folder``: one that is there passes ``check``, else ``build`` fills an empty folder with it.

    May be called by several processes at once: one builds, the others wait and open. Killed at any moment, the next
    call starts again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if progress:
            say(f"Waiting for another process that builds {folder}")
        lock.acquire()
    try:
        if (folder / "manifest.json").exists():
            store = kind.open(folder)
            check(store)
            return store
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not a {kind.WHAT} (no manifest.json) and not empty; use another run_dir")
        place = folder.parent / f".{folder.name}.building"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            build(place)
            files.sync_folder(place)
            os.rename(place, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)  # a refused source leaves nothing half-built
        files.sync_folder(folder.parent)
        store = kind.open(folder)
    finally:
        lock.release()
    if progress:
        for line in store.summary():
            say(line)
    return store
