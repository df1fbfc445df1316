"""An unfinished vector store on disk: its pinned settings, shards and ledgers (``embedding`` says which files)."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter

from jasper_jax.data import shards as sh
from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.progress import say
from jasper_jax.teachers import vectors as vec
from jasper_jax.teachers.codec import Codec, int8_scales
from jasper_jax.teachers.held import drawn_rows, held_draws, holds, together
from jasper_jax.teachers.vectors import VectorSpec, VectorStore

_SCALES = TypeAdapter(list[vec.Scale])


def refuse_foreign(folder: Path, what: str = "vector store") -> None:
    """UserError: ``folder`` has files, and no ``what`` was begun there: its shards would be among them."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    if names and not {"spec.json", "manifest.json"} & set(names):
        raise UserError(
            f"{folder}: not empty and not a {what} (no spec.json); move what is there away, or set stores=..."
        )


class Task(NamedTuple):
    """A shard to make."""

    shard: sh.ShardInfo
    recorded: dict[str, Any] | None
    """Its ledger line, if it is there and lacks vectors."""


class StoreWriter:
    """An unfinished vector store, as one of the processes that fill it sees it."""

    def __init__(self, folder: Path, texts: TextStore, spec: VectorSpec, draws: Draws | None):
        self.folder, self.texts, self.spec, self.draws = folder, texts, spec, draws
        self.manifest = folder / "manifest.json"
        self.names = {s: sh.shard_file("vectors", s, texts.shards) for s in texts.shards}
        self.ledger = folder / f"done-{uuid.uuid4().hex[:8]}.jsonl"

    @classmethod
    def begin(
        cls, folder: Path, texts: TextStore, spec: VectorSpec, draws: Draws | None, *, progress: bool
    ) -> StoreWriter | None:
        """The store in ``folder``, begun or continued; None if it is complete.

        Raises:
          UserError: ``folder`` holds vectors of another teacher, prompt or text store.
        """
        folder.mkdir(parents=True, exist_ok=True)
        writer = cls(folder, texts, spec, draws)
        if writer.manifest.exists():
            if not writer.reopen_for_repair():
                return None
            if progress:
                say(f"{folder.name}: shards or vectors are missing; only those are made.")
        writer.pin()
        return writer

    def pin(self) -> None:
        """Record the teacher and the texts in ``spec.json``; UserError if it records others."""
        path = self.folder / "spec.json"
        content = {"format": vec.FORMAT, "texts": self.texts.fingerprint, "spec": self.spec.as_json()}
        if not path.exists():
            files.write_once(path, files.json_bytes(files.sealed(content)))
        try:
            recorded = parse_json(read_record_bytes(path))
            version, fingerprint, spec = recorded["format"], recorded["texts"], recorded["spec"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: cannot be read ({e!r}); delete the folder and embed again") from None
        if not files.is_whole(recorded):
            raise UserError(f"{path}: damaged (its checksum differs); delete the folder and embed again")
        if version != vec.FORMAT:
            raise UserError(f"{path}: format version {version}, this program writes {vec.FORMAT}; delete the folder")
        vec.refuse_other_texts(self.folder, fingerprint, self.texts)
        vec.refuse_other_spec(self.folder, spec, self.spec)

    def draws_of(self, shard: sh.ShardInfo) -> Draws | None:
        """The draws that this shard needs; None: all rows. The first int8 shard is complete, for the scales."""
        whole = shard.split != sh.TRAIN or (self.spec.dtype == "int8" and shard == self.texts.shards[0])
        return None if whole else self.draws

    def wanted(self, shard: sh.ShardInfo) -> np.ndarray:
        """``[rows]`` bool: the rows that need a vector."""
        return drawn_rows(self.draws_of(shard), shard, self._size(shard))

    def _size(self, shard: sh.ShardInfo) -> int:
        return self.texts.size(shard.split)

    def codec(self, first: Callable[[], np.ndarray]) -> Codec:
        """How values are stored. ``first`` makes the first shard's vectors, if the int8 scales do not exist yet."""
        if self.spec.dtype != "int8":
            return Codec(self.spec.dim, self.spec.dtype)
        path = self.folder / "scales.json"
        if not path.exists():
            scales = int8_scales(first())
            files.write_once(path, files.json_bytes(files.sealed({"scales": scales.tolist()})))
        return Codec(self.spec.dim, "int8", np.array(self.scales(), np.float32))

    def scales(self) -> list[float]:
        """The int8 scales in ``scales.json``, with which every shard of the store is encoded."""
        path = self.folder / "scales.json"
        try:
            recorded = parse_json(read_record_bytes(path))
            scales = _SCALES.validate_python(recorded["scales"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: not the scales of int8 vectors (numbers above 0); delete {self.folder} and embed again"
            ) from None
        if not files.is_whole(recorded):
            raise UserError(f"{path}: damaged (its checksum differs); delete {self.folder} and embed again")
        return scales

    def lacking(self, shard: sh.ShardInfo, old: dict[str, Any] | None) -> np.ndarray:
        """``[rows]`` bool: the rows that need a vector and have none. ``old``: the shard's ledger line, if any."""
        wanted = self.wanted(shard)
        return wanted if old is None else wanted & ~drawn_rows(held_draws(old), shard, self._size(shard))

    def write(
        self, shard: sh.ShardInfo, old: dict[str, Any] | None, rows: np.ndarray, vectors: np.ndarray, codec: Codec
    ) -> None:
        """Write a shard with ``vectors`` in ``rows``, and the records that it has by its ledger line ``old``."""
        path = self.folder / self.names[shard]
        part = files.temporary(path)
        new, clipped = codec.encode(vectors)
        draws, records = self.draws_of(shard), [b""] * shard.rows
        if old is not None:
            records = sh.ShardReader(self.folder, {shard: path.name}, vec.REMEDY).read_shard(shard)
            clipped += old["clipped"]
            held = held_draws(old)
            draws = None if draws is None or held is None else draws | held
        for row, record in zip(rows.tolist(), new, strict=True):
            records[row] = record
        entry = {"file": path.name, "split": shard.split, "index": shard.index, "rows": shard.rows, "clipped": clipped}
        if draws is not None:
            entry["held"] = {"draws": draws.as_json(), "vectors": sum(map(bool, records))}
        try:
            self._put(entry, path, part, records)
        finally:
            part.unlink(missing_ok=True)  # after an error or a request to stop
        files.sync_folder(self.folder)

    def _put(self, entry: dict[str, Any], path: Path, part: Path, records: list[bytes]) -> None:
        """Write the shard to ``part``, note it in the ledger, rename it to ``path``."""
        try:
            sh.write_records(part, records, compress=False)
        except OSError as error:
            raise files.naming(error, path) from None
        if self.manifest.exists():  # another process has finished the store
            return
        try:
            entry |= {"bytes": part.stat().st_size, "sha256": files.sha256_file(part)}
            self._note([entry])  # before the rename: a shard under its final name always has its line
            os.replace(part, path)
        except FileNotFoundError:  # another process finished the store just now and deleted ``part`` as a leftover
            if not self.manifest.exists():
                raise

    def _note(self, entries: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(files.sealed(entry), sort_keys=True) + "\n" for entry in entries)
        try:
            with open(self.ledger, "a", encoding="utf-8") as f:
                f.write(lines)
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            raise files.naming(error, self.ledger) from None

    def tasks(self) -> list[Task]:
        """The shards that are missing or lack vectors."""
        recorded = self.recorded()
        return [
            Task(shard, recorded.get(shard))
            for shard in self.texts.shards
            if shard not in recorded or not holds(recorded[shard], self.draws_of(shard))
        ]

    def done(self) -> dict[sh.ShardInfo, dict[str, Any]]:
        """The shards that have all vectors, with their ledger lines."""
        return {shard: line for shard, line in self.recorded().items() if holds(line, self.draws_of(shard))}

    def recorded(self) -> dict[sh.ShardInfo, dict[str, Any]]:
        """The shards that are there, with their ledger lines. A shard that was made twice left two lines;
        where a recipe that draws more found nothing to add, they are of the same bytes."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for ledger in sorted(self.folder.glob("done-*.jsonl")):
            for line in _read_lines(ledger):
                lines.setdefault(line["file"], []).append(line)
        out = {}
        for shard, name in self.names.items():
            path = self.folder / name
            size = path.stat().st_size if path.exists() else -1
            recorded = [line for line in lines.get(name, []) if line["bytes"] == size]
            if len({line["sha256"] for line in recorded}) > 1:
                digest = files.sha256_file(path)
                recorded = [line for line in recorded if line["sha256"] == digest]
            if recorded:
                out[shard] = together(recorded)
        return out

    def reopen_for_repair(self) -> bool:
        """Whether a finished store lacks shards or vectors; if so, its manifest becomes a ledger again."""
        manifest = files.read_manifest(self.folder, "vector store", vec.FORMAT, vec.VectorManifest)
        vec.refuse_other_texts(self.folder, manifest["texts"], self.texts)
        vec.refuse_other_spec(self.folder, manifest["spec"], self.spec)
        try:
            files.check_files(self.folder, manifest["shards"], vec.REMEDY)
        except UserError:
            complete = False
        else:
            pairs = zip(self.texts.shards, manifest["shards"], strict=True)
            complete = all(holds(entry, self.draws_of(shard)) for shard, entry in pairs)
        if not complete:
            self._note(manifest["shards"])
            self.manifest.unlink(missing_ok=True)
        return not complete

    def finish(self) -> VectorStore | None:
        done = self.done()
        if len(done) < len(self.names):
            return VectorStore.open(self.folder, self.texts, self.spec) if self.manifest.exists() else None
        entries = [done[shard] for shard in self.texts.shards]
        size = {split: sum(e["bytes"] for e in entries if e["split"] == split) for split in sh.SPLITS}
        vec.write_metadata(self.folder, self.spec, self.texts.shards, size)
        manifest = {
            "format": vec.FORMAT,
            "texts": self.texts.fingerprint,
            "spec": self.spec.as_json(),
            "splits": {split: self.texts.size(split) for split in sh.SPLITS},
            "count": sum(e["held"]["vectors"] if e.get("held") else e["rows"] for e in entries),
            "clipped": sum(e["clipped"] for e in entries),
            "scales": self.scales() if self.spec.dtype == "int8" else None,
            "shards": entries,
        }
        files.write_atomic(self.manifest, files.json_bytes(files.sealed(manifest)))
        for ledger in self.folder.glob("done-*.jsonl"):
            ledger.unlink(missing_ok=True)
        files.remove_leftovers(self.folder, self.names.values())
        return VectorStore.open(self.folder, self.texts, self.spec)


def _read_lines(ledger: Path) -> list[dict[str, Any]]:
    """The complete lines of a ledger; none if a finishing process has deleted it.

    A damaged line is skipped, and so is a last line that a kill has truncated: their shards are made again.
    """
    try:
        lines = read_record_bytes(ledger).split(b"\n")
    except FileNotFoundError:
        return []
    entries = []
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            entry = parse_json(line)
            if files.is_whole(entry):
                entry.pop("checksum", None)
                vec.VectorShard.model_validate_json(json.dumps(entry))
                entries.append(entry)
    return entries
