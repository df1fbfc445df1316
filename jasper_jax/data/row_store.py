"""What the text store and the pair store share: rows in splits, built once in a folder, random access.

    rows ─► shards of each split in ``.name.building-*`` ─► manifest ─► renamed to ``name`` when complete

Processes that want the same store wait for the one that holds the lock and builds it. A store that was built from
another recipe, or whose source files have changed since, is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
from filelock import Timeout
from pydantic import BaseModel, model_validator

from jasper_jax.data import shards as sh
from jasper_jax.data.source_files import SourceFile, changed_files, hashed
from jasper_jax.recipe.config_sources import Images, Texts
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.in_place import folder_lock
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.workers import Workers

R = TypeVar("R")


class RowManifest(sh.StoreManifest):
    """``manifest.json`` of a row store; a subclass adds its settings."""

    KEY: ClassVar[str]
    """Of the settings: ``texts`` or ``images``."""
    SPLITS: ClassVar[tuple[str, ...]]

    seed: int
    counts: dict[str, dict[str, Any]]
    notes: list[str]
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
    """The local source files the store was built from; empty in stores of an earlier version."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if set(self.splits) != set(self.SPLITS):
            raise ValueError(f"splits are {', '.join(self.splits)}; expected {', '.join(self.SPLITS)}")
        rows = getattr(self, self.KEY).shard_rows
        if sum(-(-size // rows) for size in self.splits.values()) != len(self.shards):
            raise ValueError(f"{len(self.shards)} shards do not hold the splits' rows")
        shards = sh.shard_map(self.splits, rows)
        if wrong := sh.other_shards([s.model_dump() for s in self.shards], shards, self.KEY):
            raise ValueError(wrong)
        return self


class RowStore(Generic[R]):
    """A store in ``folder``: random access to its rows; thread-safe, picklable."""

    WHAT: ClassVar[str]
    ROWS: ClassVar[str]
    """What its rows are called; also the name of the TFDS data set."""
    ABOUT: ClassVar[str]
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
        """Open a finished store. UserError: it is missing, incomplete, or of a later format."""
        manifest = files.read_manifest(Path(folder), cls.WHAT, cls.FORMAT, cls.MANIFEST)
        files.check_files(Path(folder), manifest["shards"], cls._remedy())
        return cls(Path(folder), manifest)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """The store in ``folder``; None where none was finished. UserError as :meth:`open`."""
        return cls.open(folder) if (folder / "manifest.json").is_file() else None

    @staticmethod
    def parse(record: bytes) -> R:
        """The row of a record."""
        raise NotImplementedError

    @staticmethod
    def digested(row: R) -> bytes:
        """What of the row goes into the fingerprint."""
        raise NotImplementedError

    @staticmethod
    def features() -> dict[str, Any]:
        """The TFDS features of a row."""
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """sha256 over every row and the shard map; vector stores record it."""
        return self.manifest["fingerprint"]

    def size(self, split: str) -> int:
        return self._reader.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> list[R]:
        return [self.parse(record) for record in self._reader.read(split, indices)]

    def read_shard(self, shard: sh.ShardInfo) -> list[R]:
        return [self.parse(record) for record in self._reader.read_shard(shard)]

    def verify(self) -> None:
        """Read everything. UserError: the sha256 of a file or the fingerprint is not the recorded one."""
        digests = {split: hashlib.sha256() for split in self.MANIFEST.SPLITS}
        for shard, entry in zip(self.shards, self.manifest["shards"]):
            path = self.folder / entry["file"]
            if (sha256 := files.sha256_file(path)) != entry["sha256"]:
                raise UserError(f"{path}: sha256 is {sha256}, the manifest says {entry['sha256']}; {self._remedy()}")
            for row in self.read_shard(shard):
                digests[shard.split].update(self.digested(row))
        fingerprint = _fingerprint(digests, self.shards)
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{self.folder}: fingerprint is {fingerprint}, the manifest says {self.fingerprint}; {self._remedy()}"
            )

    def summary(self) -> list[str]:
        """Lines for people: how many documents or pairs of each source were used, dropped, skipped; then the notes."""
        raise NotImplementedError

    def refuse_other(self, settings: BaseModel, seed: int, patterns: Sequence[str]) -> None:
        """UserError: it was built from other settings, or its source files have changed since."""
        key = self.MANIFEST.KEY
        recorded = type(settings).model_validate(self.manifest[key]).model_dump(mode="json")
        different = files.differences(recorded, settings.model_dump(mode="json"), key)
        different += files.differences(self.manifest["seed"], seed, "seed")
        if different:
            raise UserError(
                f"{self.folder}: was built with another recipe: {'; '.join(different)}; set run_dir=... (or"
                f" stores=...) to another folder, where a new {self.WHAT} is built; this one and its vectors stay"
            )
        recorded_files = [SourceFile.model_validate(file) for file in self.manifest.get("files", [])]
        if changed := changed_files(recorded_files, patterns):
            raise UserError(
                f"{'; '.join(changed)} after {self.folder} was built from {'them' if changed[1:] else 'it'}; "
                f"restore the file, or set run_dir=... to build a new store"
            )


S = TypeVar("S", bound=RowStore)


def _fingerprint(digests: Mapping[str, Any], shards: Sequence[sh.ShardInfo]) -> str:
    rows = {split: digest.hexdigest() for split, digest in digests.items()}
    content = {"rows": rows, "shards": [list(shard) for shard in shards]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Written(NamedTuple):
    """A shard's file: its size in bytes and its sha256."""

    bytes: int
    sha256: str


def write_shard(path: Path, records: Iterable[bytes], *, compress: bool = False) -> Written:
    """Write the records of a shard to ``path``."""
    sh.write_records(path, records, compress=compress)
    return Written(path.stat().st_size, files.sha256_file(path))


class SplitWriter:
    """Writes the shards of one split from a stream of rows. ``finish`` names them, as names contain their number."""

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_rows: int,
        write: Callable[[Path, list[Any]], Written],
        workers: Workers | None = None,
    ):
        """``write(path, rows)`` writes a shard, called by ``workers`` (None: in this process)."""
        self.folder, self.split, self.shard_rows = folder, split, shard_rows
        self.digest, self.parts, self.rows = hashlib.sha256(), [], 0
        self._write, self._workers = write, workers or Workers(1)
        self._written: list[Future[Written]] = []

    def write(self, rows: Iterable[tuple[Any, bytes]]) -> None:
        """Write rows; each is what ``write`` takes and what of it goes into the fingerprint."""
        pending: list[Any] = []
        for row, digested in rows:
            self.digest.update(digested)
            pending.append(row)
            self.rows += 1
            if len(pending) == self.shard_rows:
                self._flush(pending)
                pending = []
        if pending:
            self._flush(pending)

    def _flush(self, rows: list[Any]) -> None:
        part = self.folder / f"{self.split}-{len(self.parts):05d}.part"
        self.parts.append(part)
        self._written.append(self._workers.submit(self._write, part, rows))
        if len(self._written) >= self._workers.ahead:
            self._written[-self._workers.ahead].result()

    def written(self) -> list[Written]:
        """What was written, for each of ``parts``; waits until all is."""
        return [future.result() for future in self._written]


def finish(
    store: type[RowStore],
    folder: Path,
    writers: Mapping[str, SplitWriter],
    settings: Texts | Images,
    seed: int,
    source_files: Sequence[SourceFile],
    **more: Any,
) -> None:
    """Rename the written shards and write TFDS metadata and manifest; ``more`` are further keys of the manifest."""
    sizes = {split: writer.rows for split, writer in writers.items()}
    shards = sh.shard_map(sizes, settings.shard_rows)
    entries, split_bytes = [], Counter[str]()
    parts = [done for writer in writers.values() for done in zip(writer.parts, writer.written(), strict=True)]
    for shard, (part, (size, digest)) in zip(shards, parts, strict=True):
        path = part.rename(folder / sh.shard_file(store.ROWS, shard, shards))
        split_bytes[shard.split] += size
        entry = {"split": shard.split, "index": shard.index, "file": path.name, "rows": shard.rows}
        entries.append({**entry, "bytes": size, "sha256": digest})
    sh.write_metadata(folder, store.ROWS, store.features(), shards, split_bytes, store.ABOUT)
    manifest = {
        "format": store.FORMAT,
        "seed": seed,
        store.MANIFEST.KEY: settings.model_dump(mode="json"),
        "splits": sizes,
        "shards": entries,
        "fingerprint": _fingerprint({split: writer.digest for split, writer in writers.items()}, shards),
        "files": [file.model_dump() for file in hashed(source_files)],
        **more,
    }
    files.write_atomic(folder / "manifest.json", files.json_bytes(files.sealed(manifest)))


def _building(folder: Path) -> str:
    return f".{folder.name}.building"


def _remove_unfinished(folder: Path) -> None:
    """Delete what builds of ``folder`` have left beside it."""
    for path in folder.parent.iterdir():
        if path.name.startswith(_building(folder)):
            shutil.rmtree(path, ignore_errors=True)


def build_or_open(
    kind: type[S], folder: Path, build: Callable[[Path], None], check: Callable[[S], None], *, progress: bool
) -> S:
    """Open the store in ``folder`` and ``check`` it, or let ``build`` fill an empty folder first.

    Several processes may call this at once: one builds, the others wait and open. After a kill at any moment the next
    call starts again and gives the same store.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder_lock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        if progress:
            say(f"Waiting for another process that is building {folder}")
        lock.acquire()
    try:
        if (folder / "manifest.json").exists():
            store = kind.open(folder)
            check(store)
            return store
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not a {kind.WHAT} (no manifest.json) and not empty; use another run_dir")
        # A name of its own: a process of a build that was killed may still write a shard into that build's folder.
        temporary = folder.parent / f"{_building(folder)}-{uuid.uuid4().hex[:8]}"
        _remove_unfinished(folder)
        temporary.mkdir()
        try:
            build(temporary)
            files.sync_folder(temporary)
            temporary.rename(folder)
        finally:
            _remove_unfinished(folder)  # after an error
        files.sync_folder(folder.parent)
        store = kind.open(folder)
    finally:
        lock.release()
    if progress:
        for line in store.summary():
            say(line)
    return store
