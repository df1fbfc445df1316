"""The text store: what every later step reads. Mixed, augmented, free of duplicates, with texts held out.

    sources ─► documents ─► (divide, shuffle words) ─► texts ─► no duplicates ─► train | held_out shards

A pure function of (the recipe's ``texts``, the seed, the sources' content). It is built in a folder beside
the final one and renamed when whole; a lock makes processes that want the same store wait for the one that
builds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from pydantic import model_validator

from jasper_jax import files
from jasper_jax.config import Texts
from jasper_jax.data import shards as sh
from jasper_jax.data.selection import Selection, Text
from jasper_jax.data.source_files import SourceFile, changed_files, hashed, local_files
from jasper_jax.errors import UserError
from jasper_jax.progress import Bar, bar, say

FORMAT = 1
_REMEDY = "restore the file, or delete the folder and build the text store again"


class Row(NamedTuple):
    text: str
    kind: str


class TextManifest(sh.StoreManifest):
    """``manifest.json`` of a text store."""

    seed: int
    texts: Texts
    counts: dict[str, dict[str, dict[str, int]]]
    notes: list[str]
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
    """The local source files the store was built from; none were recorded before they were compared."""

    @model_validator(mode="after")
    def _whole(self) -> TextManifest:
        if set(self.splits) != set(sh.SPLITS):
            raise ValueError(f"splits are {', '.join(self.splits)}; {', '.join(sh.SPLITS)} are needed")
        rows = self.texts.shard_rows
        if sum(-(-size // rows) for size in self.splits.values()) != len(self.shards):
            raise ValueError(f"{len(self.shards)} shards are recorded, another number holds the splits' rows")
        if wrong := sh.other_shards([s.model_dump() for s in self.shards], sh.shard_map(self.splits, rows)):
            raise ValueError(wrong)
        return self


# ------------------------------------------------------------------------------------------ reading


class TextStore:
    """A text store in ``folder``: random access to the texts, safe among threads, picklable."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = Path(folder), manifest
        sizes = {split: manifest["splits"][split] for split in sh.SPLITS}
        self.shards = sh.shard_map(sizes, manifest["texts"]["shard_rows"])
        names = {shard: entry["file"] for shard, entry in zip(self.shards, manifest["shards"], strict=True)}
        self._reader = sh.ShardReader(self.folder, names, _REMEDY)

    @classmethod
    def open(cls, folder: Path | str) -> TextStore:
        """Open a finished store; UserError when it is missing, incomplete, or of a later format."""
        manifest = files.read_manifest(Path(folder), "text store", FORMAT, TextManifest)
        files.check_files(Path(folder), manifest["shards"], _REMEDY)
        return cls(Path(folder), manifest)

    @property
    def fingerprint(self) -> str:
        """sha256 over every text, its kind and the shard map: what vectors are aligned with."""
        return self.manifest["fingerprint"]

    def size(self, split: str) -> int:
        return self._reader.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> list[Row]:
        return [_parse(record) for record in self._reader.read(split, indices)]

    def read_shard(self, shard: sh.ShardInfo) -> list[Row]:
        return [_parse(record) for record in self._reader.read_shard(shard)]

    def summary(self) -> list[str]:
        """What happened to the documents, one line a source and kind, then the notes: for people."""
        lines = [
            f"{source} ({kind}): " + ", ".join(f"{n:,} {what}" for what, n in counts.items())
            for source, kinds in self.manifest["counts"].items()
            for kind, counts in kinds.items()
        ]
        return [*lines, *self.manifest["notes"]]

    def verify(self) -> None:
        """Read everything: UserError when a file's sha256 or the fingerprint is not the recorded one."""
        digests = {split: hashlib.sha256() for split in sh.SPLITS}
        for shard, entry in zip(self.shards, self.manifest["shards"]):
            path = self.folder / entry["file"]
            if (seen := files.sha256_file(path)) != entry["sha256"]:
                raise UserError(f"{path}: sha256 is {seen}, the manifest says {entry['sha256']}; {_REMEDY}")
            for row in self.read_shard(shard):
                _add_row(digests[shard.split], row.text, row.kind)
        seen = _fingerprint({k: d.hexdigest() for k, d in digests.items()}, self.shards)
        if seen != self.fingerprint:
            raise UserError(f"{self.folder}: fingerprint is {seen}, the manifest says {self.fingerprint}; {_REMEDY}")


def _example(text: Text) -> bytes:
    """A tf.Example with the three strings; ``deterministic`` fixes the order of its fields."""
    example = sh.example_class()()
    for name, value in text._asdict().items():
        example.features.feature[name].bytes_list.value.append(value.encode())
    return example.SerializeToString(deterministic=True)


def _parse(record: bytes) -> Row:
    feature = sh.example_class().FromString(record).features.feature
    return Row(feature["text"].bytes_list.value[0].decode(), feature["kind"].bytes_list.value[0].decode())


def _add_row(digest: Any, text: str, kind: str) -> None:
    data = text.encode()
    digest.update(f"{kind} {len(data)} ".encode() + data)


def _fingerprint(digests: dict[str, str], shards: Sequence[sh.ShardInfo]) -> str:
    content = {"rows": digests, "shards": [list(s) for s in shards]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# ----------------------------------------------------------------------------------------- building


class _SplitWriter:
    """Writes one split's shards as its rows come; their names, given last, hold the number of shards."""

    def __init__(self, folder: Path, split: str, shard_rows: int):
        self.folder, self.split, self.shard_rows = folder, split, shard_rows
        self.digest, self.parts, self.rows = hashlib.sha256(), [], 0

    def write(self, texts: Iterator[Text]) -> None:
        pending: list[bytes] = []
        for text in texts:
            _add_row(self.digest, text.text, text.kind)
            pending.append(_example(text))
            self.rows += 1
            if len(pending) == self.shard_rows:
                self._flush(pending)
                pending = []
        if pending:
            self._flush(pending)

    def _flush(self, records: list[bytes]) -> None:
        part = self.folder / f"{self.split}-{len(self.parts):05d}.part"
        sh.write_records(part, records, compress=True)
        self.parts.append(part)


def _build(texts: Texts, folder: Path, seed: int, progress: Bar) -> None:
    sources = local_files(texts)
    selection = Selection(texts, seed)
    writers = {split: _SplitWriter(folder, split, texts.shard_rows) for split in sh.SPLITS}

    def shown(stream: Iterator[Text]) -> Iterator[Text]:
        for n, text in enumerate(stream, start=1):
            if n % 256 == 0:
                progress.advance(256)
            yield text

    writers[sh.TRAIN].write(shown(selection.train()))
    writers[sh.HELD_OUT].write(iter(selection.held()))
    sizes = {split: writer.rows for split, writer in writers.items()}
    progress.advance(sizes[sh.TRAIN] % 256)
    _refuse_too_few(texts, sizes, sum(n for (_, _, what), n in selection.counts.items() if what == "documents"))
    map_ = sh.shard_map(sizes, texts.shard_rows)
    entries = []
    for shard, part in zip(map_, [p for w in writers.values() for p in w.parts], strict=True):
        path = part.rename(folder / sh.shard_file("texts", shard, map_))
        size, digest = path.stat().st_size, files.sha256_file(path)
        entry = {"split": shard.split, "index": shard.index, "file": path.name, "rows": shard.rows}
        entries.append({**entry, "bytes": size, "sha256": digest})
    _write_tfds(folder, map_, entries)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for (source, kind, what), n in selection.counts.items():
        if n:
            counts.setdefault(source, {}).setdefault(kind, {})[what] = n
    manifest = {
        "format": FORMAT,
        "seed": seed,
        "texts": texts.model_dump(mode="json"),
        "splits": sizes,
        "counts": counts,
        "notes": _notes(texts, sizes, selection.mix.exhausted),
        "shards": entries,
        "files": [file.model_dump() for file in hashed(sources)],
        "fingerprint": _fingerprint({k: w.digest.hexdigest() for k, w in writers.items()}, map_),
    }
    files.write_atomic(folder / "manifest.json", files.json_bytes(files.sealed(manifest)))


def _write_tfds(folder: Path, shards: Sequence[sh.ShardInfo], entries: list[dict[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    features = {name: tfds.features.Text() for name in Text._fields}
    size = Counter[str]()
    for entry in entries:
        size[entry["split"]] += entry["bytes"]
    sh.write_metadata(folder, "texts", features, shards, size, "Texts for distillation, with kind and source.")


def _refuse_too_few(texts: Texts, sizes: dict[str, int], documents: int) -> None:
    if not documents:
        raise UserError("texts.sources: the sources give no documents at all")
    if sizes[sh.TRAIN] < 2:
        raise UserError(
            f"texts: {documents:,} documents leave {sizes[sh.TRAIN]} texts for training after "
            f"{sizes[sh.HELD_OUT]:,} held out (texts.held_out: {texts.held_out}); at least 2 are needed: "
            f"lower held_out or add texts"
        )


def _notes(texts: Texts, sizes: dict[str, int], exhausted: dict[str, int]) -> list[str]:
    notes = []
    if texts.count is not None:
        if sizes[sh.TRAIN] < texts.count:
            notes.append(f"warning: texts.count is {texts.count:,}, the sources gave {sizes[sh.TRAIN]:,}")
        notes += [f"{name} ran out after {n:,} documents, before texts.count" for name, n in exhausted.items()]
    notes += [f"warning: {name} gave no document" for name, n in exhausted.items() if not n]
    if sizes[sh.HELD_OUT] < texts.held_out:
        notes.append(f"warning: texts.held_out is {texts.held_out:,}, only {sizes[sh.HELD_OUT]:,} were held out")
    return notes


def _open_matching(texts: Texts, folder: Path, seed: int) -> TextStore:
    """Open the store in ``folder``, refused when it was built from another recipe."""
    store = TextStore.open(folder)
    recorded = Texts.model_validate(store.manifest["texts"]).model_dump(mode="json")
    different = files.differences(recorded, texts.model_dump(mode="json"), "texts")
    different += files.differences(store.manifest["seed"], seed, "seed")
    if different:
        raise UserError(
            f"{folder}: was built with another recipe: {'; '.join(different)}; use another run_dir, or "
            f"delete the folder (the vectors made from it become useless)"
        )
    changed = changed_files([SourceFile.model_validate(file) for file in store.manifest.get("files", [])], texts)
    if changed:
        raise UserError(
            f"{changed[0]} after {folder} was built from it{f' (and {len(changed) - 1} more)' if changed[1:] else ''}; "
            f"put the file back as it was, or set run_dir=... to build from what is there now"
        )
    return store


def build_text_store(texts: Texts, folder: Path | str, seed: int, *, progress: bool = True) -> TextStore:
    """Build the text store in ``folder``, or open it when it was already built from the same recipe.

    May be called by several processes at once: one builds, the others wait and open. Killed at any moment,
    the next call starts again and gives the same store. UserError: unreadable sources, fewer than 2
    training texts, a store of another recipe in ``folder``, or source files that have changed since it was built
    (files that are gone are not needed any more).
    """
    folder = Path(folder)
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
            return _open_matching(texts, folder, seed)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: not a text store (no manifest.json) and not empty; use another run_dir")
        place = folder.parent / f".{folder.name}.building"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            with bar("texts", texts.count, "texts", enabled=progress) as shown:
                _build(texts, place, seed, shown)
            files.sync_folder(place)
            os.rename(place, folder)
        finally:
            shutil.rmtree(place, ignore_errors=True)  # a refused source leaves nothing half-built
        files.sync_folder(folder.parent)
        store = TextStore.open(folder)
    finally:
        lock.release()
    if progress:
        for line in store.summary():
            say(line)
    return store
