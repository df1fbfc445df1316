"""Fills a vector store shard by shard, in any number of processes that need not communicate.

    spec.json           written first: pins the teacher and the texts; resuming with others is refused
    scales.json         int8 only: the scales, from the first shard; the first writer wins
    vectors-*           a shard, renamed from a temporary name when complete
    done-*.jsonl        a ledger, one per process: a line for each shard it made (size, sha256, values clipped)
    manifest.json       written last, by the process that finds all shards complete; it then deletes the ledgers

A shard is complete when both its file and its ledger line exist. A killed process loses only its current shard.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from jasper_jax.data import shards as sh
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar, say
from jasper_jax.teachers import vectors as vec
from jasper_jax.teachers.vectors import Codec, VectorSpec, VectorStore

_SCALES = TypeAdapter(list[vec.Scale])

Encode = Callable[[list[str], list[str]], np.ndarray]
"""(texts, kinds) -> ``[n, T]``. If it has an attribute ``tokens`` (encoded so far), tokens/s are shown."""


def embed_teacher(
    folder: Path | str,
    texts: TextStore,
    spec: VectorSpec,
    encode: Encode,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> VectorStore | None:
    """Fill ``folder`` with the vectors of every text.

    Process i makes those of the shards i, i + N, i + 2N, ... that are missing.

    Returns:
      The finished store, to the last process that finishes; None while shards are missing.

    Raises:
      UserError: ``folder`` holds vectors of another teacher, prompt or text store, or ``encode`` returns vectors that
        have another dimension, are not finite, or are zero.
    """

    def vectors_of(shard: sh.ShardInfo) -> np.ndarray:
        rows = texts.read_shard(shard)
        vectors = np.asarray(encode([r.text for r in rows], [r.kind for r in rows]), np.float32)
        if vectors.shape != (len(rows), spec.dim):
            raise UserError(
                f"{folder}: the teacher gave vectors of shape {list(vectors.shape)} for {len(rows)} texts;"
                f" expected {[len(rows), spec.dim]}"
            )
        norms = np.linalg.norm(vectors, axis=1)
        if (bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
            raise UserError(
                f"{folder}: the teacher's vector of {shard.split} text {shard.start + int(bad[0])} is "
                f"zero or not finite ({bad.size} such in this shard): {rows[bad[0]].text[:60]!r}"
            )
        return vec.normalize_rows(vectors)

    return fill_store(
        folder,
        texts,
        spec,
        vectors_of,
        process_index=process_index,
        process_count=process_count,
        progress=progress,
        tokens=lambda: getattr(encode, "tokens", None),
    )


def fill_store(
    folder: Path | str,
    texts: TextStore,
    spec: VectorSpec,
    vectors_of: Callable[[sh.ShardInfo], np.ndarray],
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
    tokens: Callable[[], int | None] = lambda: None,
) -> VectorStore | None:
    """:func:`embed_teacher` for any vectors: ``vectors_of(shard)`` is ``[rows, T]`` float32 of norm 1."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vectors_of = functools.lru_cache(maxsize=1)(vectors_of)  # int8 needs the first shard twice
    writer = _StoreWriter(folder, texts, spec)
    if writer.manifest.exists():
        if not writer.reopen_for_repair():
            return VectorStore.open(folder, texts, spec)
        if progress:
            say(f"{folder.name}: shards are missing or truncated; only those are made again.")
    writer.pin()
    own = texts.shards[process_index::process_count]
    done = writer.done()
    share = f" (process {process_index} of {process_count})" if process_count > 1 else ""
    before = sum(s.rows for s in own if s in done)
    start, codec = time.monotonic(), None
    with bar(f"{folder.name}{share}", sum(s.rows for s in own), "texts", start=before, enabled=progress) as shown:
        for shard in own:
            if shard in done:
                continue
            codec = codec or writer.codec(vectors_of)
            writer.write(shard, vectors_of(shard), codec)
            count = tokens()
            shown.advance(shard.rows, "" if count is None else f"{count / (time.monotonic() - start):,.0f} tokens/s")
    return writer.finish()


class _StoreWriter:
    """An unfinished vector store, as one of the processes that fill it sees it."""

    def __init__(self, folder: Path, texts: TextStore, spec: VectorSpec):
        self.folder, self.texts, self.spec = folder, texts, spec
        self.manifest = folder / "manifest.json"
        self.names = {s: sh.shard_file("vectors", s, texts.shards) for s in texts.shards}
        self.ledger = folder / f"done-{uuid.uuid4().hex[:8]}.jsonl"

    def pin(self) -> None:
        """Record the teacher and the texts in ``spec.json``; UserError if it records others."""
        path = self.folder / "spec.json"
        content = {"format": vec.FORMAT, "texts": self.texts.fingerprint, "spec": self.spec.as_json()}
        if not path.exists():
            files.write_once(path, files.json_bytes(files.sealed(content)))
        try:
            recorded = files.parse_json(path.read_bytes())
            version, fingerprint, spec = recorded["format"], recorded["texts"], recorded["spec"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: cannot be read ({e!r}); delete the folder and embed again") from None
        if not files.is_whole(recorded):
            raise UserError(f"{path}: damaged (its checksum differs); delete the folder and embed again")
        if version != vec.FORMAT:
            raise UserError(f"{path}: format version {version}, this program writes {vec.FORMAT}; delete the folder")
        vec.refuse_other_texts(self.folder, fingerprint, self.texts)
        vec.refuse_other_spec(self.folder, spec, self.spec)

    def codec(self, vectors_of: Callable[[sh.ShardInfo], np.ndarray]) -> Codec:
        """How values are stored. Makes the first shard's vectors if the int8 scales do not exist yet."""
        if self.spec.dtype != "int8":
            return Codec(self.spec.dim, self.spec.dtype)
        path = self.folder / "scales.json"
        if not path.exists():
            scales = vec.int8_scales(vectors_of(self.texts.shards[0]))
            files.write_once(path, files.json_bytes(files.sealed({"scales": scales.tolist()})))
        return Codec(self.spec.dim, "int8", np.array(self.scales(), np.float32))

    def scales(self) -> list[float]:
        """The int8 scales in ``scales.json``, with which every shard of the store is encoded."""
        path = self.folder / "scales.json"
        try:
            recorded = files.parse_json(path.read_bytes())
            scales = _SCALES.validate_python(recorded["scales"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: not the scales of int8 vectors (numbers above 0); delete {self.folder} and embed again"
            ) from None
        if not files.is_whole(recorded):
            raise UserError(f"{path}: damaged (its checksum differs); delete {self.folder} and embed again")
        return scales

    def write(self, shard: sh.ShardInfo, vectors: np.ndarray, codec: Codec) -> None:
        path = self.folder / self.names[shard]
        part = files.temporary(path)
        records, clipped = codec.encode(vectors)
        try:
            self._put(shard, path, part, records, clipped)
        finally:
            part.unlink(missing_ok=True)  # after an error or a request to stop
        files.sync_folder(self.folder)

    def _put(self, shard: sh.ShardInfo, path: Path, part: Path, records: list[bytes], clipped: int) -> None:
        """Write the shard to ``part``, note it in the ledger, rename it to ``path``."""
        try:
            sh.write_records(part, records, compress=False)
        except OSError as error:
            raise files.naming(error, path) from None
        if self.manifest.exists():  # another process has finished the store
            return
        entry = {"file": path.name, "split": shard.split, "index": shard.index, "rows": shard.rows}
        try:
            entry |= {"bytes": part.stat().st_size, "sha256": files.sha256_file(part), "clipped": clipped}
            self._note([entry])  # before the rename: a shard under its final name always has its line
            os.replace(part, path)
        except FileNotFoundError:  # another process finished the store just now and deleted ``part`` as a leftover
            if not self.manifest.exists():
                raise

    def _note(self, entries: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(files.sealed(entry), sort_keys=True) + "\n" for entry in entries)
        try:
            with open(self.ledger, "a") as f:
                f.write(lines)
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            raise files.naming(error, self.ledger) from None

    def done(self) -> dict[sh.ShardInfo, dict[str, Any]]:
        """The complete shards, with their ledger lines. Two processes that made the same shard left two lines."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for ledger in sorted(self.folder.glob("done-*.jsonl")):
            for line in _read_lines(ledger):
                lines.setdefault(line["file"], []).append(line)
        out = {}
        for shard, name in self.names.items():
            path = self.folder / name
            recorded = lines.get(name, []) if path.exists() else []
            if len({line["sha256"] for line in recorded}) > 1:
                digest = files.sha256_file(path)
                recorded = [line for line in recorded if line["sha256"] == digest]
            if recorded and path.stat().st_size == recorded[0]["bytes"]:
                out[shard] = recorded[0]
        return out

    def reopen_for_repair(self) -> bool:
        """Whether a finished store lacks shards; if so, its manifest becomes a ledger again."""
        manifest = files.read_manifest(self.folder, "vector store", vec.FORMAT, vec.VectorManifest)
        vec.refuse_other_texts(self.folder, manifest["texts"], self.texts)
        vec.refuse_other_spec(self.folder, manifest["spec"], self.spec)
        try:
            files.check_files(self.folder, manifest["shards"], vec.REMEDY)
        except UserError:
            self._note(manifest["shards"])
            self.manifest.unlink(missing_ok=True)
            return True
        return False

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
            "count": sum(e["rows"] for e in entries),
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
        lines = ledger.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    entries = []
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            entry = files.parse_json(line)
            if files.is_whole(entry):
                entry.pop("checksum", None)
                entries.append(vec.VectorShard.model_validate(entry).model_dump())
    return entries
