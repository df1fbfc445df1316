"""Imports vectors made elsewhere (an API, another framework) into a vector store, so that any model can be a teacher.

The files are read once, in order. Each vector is normalised and written to its text's slot in a memory-mapped file; the
shards are written from there, in the text store's order. Memory holds about 40 bytes per text and no vectors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.text import digest
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sync_folder
from jasper_jax.teachers.embedding import fill_store
from jasper_jax.teachers.shard_maker import Steps
from jasper_jax.teachers.vector_files import VectorBatch, read_vectors, refuse_unusable
from jasper_jax.teachers.vectors import VectorSpec, VectorStore, normalize_rows


class Imported(NamedTuple):
    store: VectorStore
    rows: int
    """Vectors read."""
    extra: int
    """Vectors whose text is not in the text store."""
    duplicates: int
    """Further vectors for a text; the first is used."""

    def __str__(self) -> str:
        return (
            f"{self.rows:,} vectors read, {self.extra:,} for texts that are not in the text store,"
            f" {self.duplicates:,} duplicates (the first vector of a text is used)"
        )


class _Slots:
    """Each distinct (text, kind) of a text store has a slot: a row of the memory-mapped file."""

    def __init__(self, texts: TextStore):
        digests = np.fromiter((digest(row.text, row.kind) for s in texts.shards for row in texts.read_shard(s)), "S16")
        self.keys, self.slot_of_row = np.unique(digests, return_inverse=True)
        self.start = dict(zip(texts.shards, np.cumsum([0, *(s.rows for s in texts.shards)]).tolist()))

    def of(self, texts: Sequence[str | None], kind: str) -> np.ndarray:
        """The slot of each text, -1 where the store does not contain it."""
        keys = np.array([digest(t or "", kind) for t in texts], "S16")
        slots = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[slots] == keys, slots, -1)

    def of_shard(self, shard: sh.ShardInfo) -> np.ndarray:
        return self.slot_of_row[self.start[shard] : self.start[shard] + shard.rows]


class _Spool:
    """The vectors read so far, normalised, each in its slot of a memory-mapped file."""

    def __init__(self, path: Path, texts: TextStore, spec: VectorSpec):
        self.texts, self.spec, self.slots = texts, spec, _Slots(texts)
        shape = (len(self.slots.keys), spec.dim)
        # A float16 store loses nothing by it; the other dtypes are made from float32.
        dtype = np.float16 if spec.dtype == "float16" else np.float32
        self.vectors = np.lib.format.open_memmap(path, "w+", dtype, shape)
        self.filled = np.zeros(shape[0], bool)
        self.rows = self.extra = self.duplicates = 0

    def add(self, batch: VectorBatch) -> None:
        refuse_unusable(batch, self.spec.dim)
        vectors = normalize_rows(batch.vectors)
        known, used = np.zeros((2, len(vectors)), bool)
        for kind in KINDS:
            slot = self.slots.of(batch.texts, kind)
            rows = np.flatnonzero((slot >= 0) & np.array([k in (None, kind) for k in batch.kinds], bool))
            slot, first = np.unique(slot[rows], return_index=True)
            new = ~self.filled[slot]
            self.vectors[slot[new]] = vectors[rows[first[new]]]
            self.filled[slot] = True
            known[rows] = True
            used[rows[first[new]]] = True
        self.rows += len(vectors)
        self.extra += int(np.count_nonzero(~known))
        self.duplicates += int(np.count_nonzero(known & ~used))

    def of_shard(self, shard: sh.ShardInfo) -> np.ndarray:
        return self.vectors[self.slots.of_shard(shard)].astype(np.float32)

    def refuse_missing(self) -> None:
        """UserError that counts the texts without a vector and names the first three."""
        if self.filled.all():
            return
        names: list[str] = []
        for shard in self.texts.shards:
            missing = np.flatnonzero(~self.filled[self.slots.of_shard(shard)])
            if missing.size and len(names) < 3:
                rows = self.texts.read_shard(shard)
                names += [f"{rows[i].text[:60]!r} ({rows[i].kind})" for i in missing[: 3 - len(names)]]
        filled = self.filled[self.slots.slot_of_row]
        raise UserError(
            f"{(~filled).sum():,} of {len(filled):,} texts have no vector in the files: {', '.join(names)}; jasper"
            f" texts export RECIPE FILE.jsonl writes all texts that need one"
        )


def vectors_of(
    files: Sequence[Path | str], texts: Sequence[str], kinds: Sequence[str], spec: VectorSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The normalised vectors ``[len(texts), T]`` in ``files``, float32, and which texts have one (else zeros)."""
    keys, slots = np.unique([digest(*pair) for pair in zip(texts, kinds)], return_inverse=True)
    vectors, filled = np.zeros((len(keys), spec.dim), np.float32), np.zeros(len(keys), bool)
    place = {bytes(key).ljust(16, b"\0"): i for i, key in enumerate(keys.tolist())}
    for batch in read_vectors(files):
        refuse_unusable(batch, spec.dim)
        rows = normalize_rows(batch.vectors)
        for text, said, row in zip(batch.texts, batch.kinds, rows):
            for kind in KINDS if said is None else (said,):
                slot = place.get(digest(text or "", kind))
                if slot is not None and not filled[slot]:
                    vectors[slot], filled[slot] = row, True
    return vectors[slots], filled[slots]


def import_vectors(
    files: Sequence[Path | str | tuple[Path | str, Path | str]],
    texts: TextStore,
    folder: Path | str,
    spec: VectorSpec,
    *,
    text_column: str = "text",
    vector_column: str = "embedding",
    progress: bool = True,
) -> Imported:
    """Make the vector store ``folder`` from files of vectors, matched by text up to white space.

    A file is Parquet with a text and a vector column (optionally ``kind``: a vector for queries or passages only), or
    ``.npy`` with its texts in a file of the same name (``.jsonl`` or ``.txt``), or a pair (npy, texts). ``folder``
    appears only when the store is complete.

    Raises:
      UserError: a text without a vector; a vector that is zero, not finite or of another dimension; a file that cannot
        be read; a folder that is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; delete it to import the vectors again")
    partial = folder.parent / f".{folder.name}.importing"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        spool = _Spool(partial / "spool", texts, spec)
        for batch in read_vectors(files, text_column=text_column, vector_column=vector_column):
            spool.add(batch)
        spool.refuse_missing()
        fill_store(partial, texts, spec, Steps(lambda shard, rows: spool.of_shard(shard)[rows]), progress=progress)
        (partial / "spool").unlink()
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    return Imported(VectorStore.open(folder, texts, spec), spool.rows, spool.extra, spool.duplicates)
