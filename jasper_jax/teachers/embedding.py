"""Filling a vector store: shard by shard, by any number of processes that need not talk.

    spec.json           written first: pins the teacher and the texts; a resume with others is refused
    scales.json         int8 only: the scales, from the first shard; who gets there first writes them
    vectors-*           a shard, renamed from a temporary name when whole
    done-*.jsonl        one file a process: a line for each shard it made (size, sha256, values clipped)
    manifest.json       written last by whoever finds all shards whole; then done-*.jsonl go

A shard counts as made when its file and its line are there. A kill costs a process the shard it was making.
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
"""(texts, kinds) -> ``[n, T]``. With an attribute ``tokens`` (encoded so far), tokens/s are shown."""

_PINNED = "delete the folder and embed again"


def embed_teacher(
    folder: Path | str,
    texts: TextStore,
    spec: VectorSpec,
    encode: Encode,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
) -> VectorStore | None:
    """Fill ``folder`` with the vectors of every text; the finished store, or None while shards are missing.

    Process i makes the shards i, i + N, i + 2N, ... that are not there yet; the last of the processes to
    finish gets the store, the others None. ``stop`` is asked between shards. UserError: ``folder`` holds
    vectors of another teacher, prompt or text store, or ``encode`` gives vectors of another dimension, not
    finite, or zero.
    """

    def vectors_of(shard: sh.ShardInfo) -> np.ndarray:
        rows = texts.read_shard(shard)
        vectors = np.asarray(encode([r.text for r in rows], [r.kind for r in rows]), np.float32)
        if vectors.shape != (len(rows), spec.dim):
            raise UserError(
                f"{folder}: the teacher gave vectors of shape {list(vectors.shape)} for {len(rows)} texts, "
                f"{[len(rows), spec.dim]} was expected"
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
        stop=stop,
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
    stop: Callable[[], bool] = lambda: False,
    tokens: Callable[[], int | None] = lambda: None,
) -> VectorStore | None:
    """``embed_teacher`` for any vectors: ``vectors_of(shard)`` is ``[rows, T]`` float32 of norm 1."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vectors_of = functools.lru_cache(maxsize=1)(vectors_of)  # int8 needs the first shard twice
    work = _Work(folder, texts, spec)
    if (folder / "manifest.json").exists():
        if not work.reopen_for_repair():
            return VectorStore.open(folder, texts, spec)
        if progress:
            say(f"{folder.name}: shards are missing or cut short; only those are made anew.")
    work.pin()
    own = texts.shards[process_index::process_count]
    done = work.done()
    missing = [s for s in own if s not in done]
    share = f" (process {process_index} of {process_count})" if process_count > 1 else ""
    before = sum(s.rows for s in own if s in done)
    began, codec = time.monotonic(), None
    with bar(f"{folder.name}{share}", sum(s.rows for s in own), "texts", start=before, enabled=progress) as shown:
        for shard in missing:
            if stop():
                return None
            codec = codec or work.codec(vectors_of)
            work.write(shard, vectors_of(shard), codec)
            count = tokens()
            shown.advance(shard.rows, "" if count is None else f"{count / (time.monotonic() - began):,.0f} tokens/s")
    return work.finish()


class _Work:
    """A vector store in the making."""

    def __init__(self, folder: Path, texts: TextStore, spec: VectorSpec):
        self.folder, self.texts, self.spec = folder, texts, spec
        self.names = {s: sh.shard_file("vectors", s, texts.shards) for s in texts.shards}
        self.ledger = folder / f"done-{uuid.uuid4().hex[:8]}.jsonl"

    def pin(self) -> None:
        """Fix what the folder is for, or refuse to mix in something else."""
        path = self.folder / "spec.json"
        content = {"format": vec.FORMAT, "texts": self.texts.fingerprint, "spec": self.spec.as_json()}
        if not path.exists():
            files.write_once(path, files.json_bytes(files.sealed(content)))
        try:
            there = files.parse_json(path.read_bytes())
            version, fingerprint, spec = there["format"], there["texts"], there["spec"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path}: cannot be read ({e!r}); {_PINNED}") from None
        if not files.is_whole(there):
            raise UserError(f"{path}: damaged (its checksum differs); {_PINNED}")
        if version != vec.FORMAT:
            raise UserError(f"{path}: format version {version}, this program writes {vec.FORMAT}; delete the folder")
        vec.refuse_other_texts(self.folder, fingerprint, self.texts)
        vec.refuse_other_spec(self.folder, spec, self.spec)

    def codec(self, vectors_of: Callable[[sh.ShardInfo], np.ndarray]) -> Codec:
        """How values are stored. Without int8 scales there yet, makes the first shard's vectors itself."""
        if self.spec.dtype != "int8":
            return Codec(self.spec.dim, self.spec.dtype)
        path = self.folder / "scales.json"
        if not path.exists():
            scales = vec.int8_scales(vectors_of(self.texts.shards[0]))
            files.write_once(path, files.json_bytes(files.sealed({"scales": scales.tolist()})))
        return Codec(self.spec.dim, "int8", np.array(self.scales(), np.float32))

    def scales(self) -> list[float]:
        """The int8 scales in ``scales.json``; every shard of the store is made with them."""
        path = self.folder / "scales.json"
        try:
            there = files.parse_json(path.read_bytes())
            scales = _SCALES.validate_python(there["scales"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: not the scales of int8 vectors (numbers above 0); delete {self.folder} and embed again"
            ) from None
        if not files.is_whole(there):
            raise UserError(f"{path}: damaged (its checksum differs); delete {self.folder} and embed again")
        return scales

    def write(self, shard: sh.ShardInfo, vectors: np.ndarray, codec: Codec) -> None:
        path = self.folder / self.names[shard]
        part = files.temporary(path)
        records, clipped = codec.encode(vectors)
        try:
            sh.write_records(part, records, compress=False)
        except OSError as error:  # the part goes, or every attempt on a full disk would leave one more
            part.unlink(missing_ok=True)
            raise files.naming(error, path) from None
        if (self.folder / "manifest.json").exists():  # another run finished the store in the meantime
            part.unlink(missing_ok=True)
            return
        entry = {"file": path.name, "split": shard.split, "index": shard.index, "rows": shard.rows}
        try:
            entry |= {"bytes": part.stat().st_size, "sha256": files.sha256_file(part), "clipped": clipped}
            self._note([entry])  # before the rename: a shard under its name always has its line
            os.replace(part, path)
        except FileNotFoundError:  # it finished just now, and took the temporary for a leftover
            if not (self.folder / "manifest.json").exists():
                raise
        files.sync_folder(self.folder)

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
        """The shards that are whole, with their lines. Two runs that made the same shard left two lines."""
        lines: dict[str, list[dict[str, Any]]] = {}
        for ledger in sorted(self.folder.glob("done-*.jsonl")):
            for line in _read_lines(ledger):
                lines.setdefault(line["file"], []).append(line)
        out = {}
        for shard, name in self.names.items():
            path = self.folder / name
            found = lines.get(name, []) if path.exists() else []
            if len({line["sha256"] for line in found}) > 1:
                digest = files.sha256_file(path)
                found = [line for line in found if line["sha256"] == digest]
            if found and path.stat().st_size == found[0]["bytes"]:
                out[shard] = found[0]
        return out

    def reopen_for_repair(self) -> bool:
        """Whether a finished store lacks shards; then its manifest becomes a ledger again."""
        manifest = files.read_manifest(self.folder, "vector store", vec.FORMAT, vec.VectorManifest)
        vec.refuse_other_texts(self.folder, manifest["texts"], self.texts)
        vec.refuse_other_spec(self.folder, manifest["spec"], self.spec)
        try:
            files.check_files(self.folder, manifest["shards"], vec.REMEDY)
        except UserError:
            self._note(manifest["shards"])
            (self.folder / "manifest.json").unlink(missing_ok=True)
            return True
        return False

    def finish(self) -> VectorStore | None:
        done = self.done()
        if len(done) < len(self.names):
            ready = (self.folder / "manifest.json").exists()
            return VectorStore.open(self.folder, self.texts, self.spec) if ready else None
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
        files.write_atomic(self.folder / "manifest.json", files.json_bytes(files.sealed(manifest)))
        for ledger in self.folder.glob("done-*.jsonl"):
            ledger.unlink(missing_ok=True)
        files.remove_leftovers(self.folder, self.names.values())
        return VectorStore.open(self.folder, self.texts, self.spec)


def _read_lines(ledger: Path) -> list[dict[str, Any]]:
    """The whole lines of a ledger: a kill may have cut the last one, a finishing process removed the file.

    A line that is not what was written is left out, and so its shard is made again.
    """
    try:
        lines = ledger.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines[:-1]:
        with contextlib.suppress(ValueError, TypeError):
            entry = files.parse_json(line)
            if files.is_whole(entry):
                entry.pop("checksum", None)
                found.append(vec.VectorShard.model_validate(entry).model_dump())
    return found
