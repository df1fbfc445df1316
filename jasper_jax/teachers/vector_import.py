"""Imports vectors made elsewhere (an API, another framework) into a vector store, so that any model can be a teacher.

The files are read once, in order. Each vector is normalised and written to its text's slot in a memory-mapped file; the
shards are written from there, in the text store's order. Memory holds about 40 bytes per text and no vectors.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_jax.data import shards as sh
from jasper_jax.data.parquet import DAMAGED, batches
from jasper_jax.data.text import digest
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.files import parse_json, sync_folder
from jasper_jax.runtime.text_files import content_suffix, numbered_lines
from jasper_jax.teachers.embedding import fill_store
from jasper_jax.teachers.shard_maker import Steps
from jasper_jax.teachers.vectors import VectorSpec, VectorStore, normalize_rows

_ROWS = 1024
_NO_NPY = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    OverflowError,
    SyntaxError,
    MemoryError,
    RecursionError,
    TokenError,
)
"""What ``numpy`` raises for a file that is no .npy: it parses the header as Python."""


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


class _Batch(NamedTuple):
    """Rows ``start`` (from 1) onwards of ``file``."""

    file: Path
    start: int
    texts: Sequence[str | None]
    kinds: Sequence[str | None]
    vectors: np.ndarray


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


# ------------------------------------------------------------------------------------------- reading


def _parquet(path: Path, text_column: str, vector_column: str) -> Iterator[_Batch]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in (text_column, vector_column):
                if name not in names:
                    raise UserError(
                        f"{path}: no column {name!r}; there are {', '.join(names)}: rename the text's column to"
                        f" {text_column}, the vector's to {vector_column}"
                    )
            if twice := [name for name in (text_column, vector_column, "kind") if names.count(name) > 1]:
                raise UserError(f"{path}: has the column {twice[0]!r} more than once; leave one of them")
        columns = [text_column, vector_column, *(["kind"] if "kind" in names else [])]
        for start, batch in batches(path, columns, _ROWS):
            vectors = _rectangle(path, start, batch.column(vector_column), vector_column)
            texts = batch.column(text_column).to_pylist()
            if not all(isinstance(text, str | None) for text in texts):
                kind = batch.column(text_column).type
                raise UserError(f"{path}: column {text_column!r} is {kind}; expected strings")
            kinds = batch.column("kind").to_pylist() if "kind" in names else [None] * len(texts)
            yield _Batch(path, start, texts, kinds, vectors)
    except DAMAGED as e:
        raise UserError(
            f"{path}: cannot be read as Parquet ({first_line(e)}); give Parquet, or .npy with its .txt or .jsonl"
        ) from None


def _rectangle(path: Path, start: int, column: pa.Array, name: str) -> np.ndarray:
    """A list column as ``[n, T]``."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise UserError(f"{path}: column {name!r} is {kind}; expected a list of floats")
    lengths = np.asarray(column.value_lengths().fill_null(-1))
    if (odd := np.flatnonzero((lengths != lengths[0]) | (lengths < 1))).size:
        row = start + int(odd[0])
        raise UserError(f"{path}, row {row}: {name!r} has {max(lengths[odd[0]], 0)} values, others {lengths.max()}")
    values = column.flatten().to_numpy(zero_copy_only=False)  # a null inside becomes NaN, refused later
    return values.reshape(len(column), lengths[0])


def _npy(path: Path, text_file: Path | None) -> Iterator[_Batch]:
    """A ``.npy`` array ``[n, T]`` and the texts beside it: the same name with ``.txt`` or ``.jsonl``."""
    beside = [text_file] if text_file else [path.with_suffix(s) for s in (".jsonl", ".txt")]
    text_path = next((p for p in beside if p.exists()), None)
    if text_path is None:
        raise UserError(f"{path}: no file with its texts; expected {' or '.join(map(str, beside))}")
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")  # np.load would also read archives
    except _NO_NPY as e:
        raise UserError(f"{path}: cannot be read as .npy ({first_line(e)})") from None
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise UserError(f"{path}: {vectors.dtype} of shape {list(vectors.shape)}; expected floats of shape [n, T]")
    rows = _read_texts(text_path)
    for start in range(0, len(vectors), _ROWS):
        block = np.asarray(vectors[start : start + _ROWS])
        block_rows = list(islice(rows, len(block)))
        if len(block_rows) < len(block):
            raise UserError(f"{text_path}: {start + len(block_rows)} texts, {path} has {len(vectors)} vectors")
        yield _Batch(path, start + 1, [r[0] for r in block_rows], [r[1] for r in block_rows], block)
    if (more := sum(1 for _ in rows)) > 0:
        raise UserError(f"{text_path}: {len(vectors) + more} texts, {path} has {len(vectors)} vectors")


def _read_texts(path: Path) -> Iterator[tuple[str | None, str | None]]:
    """(text, kind) of each line of a ``.jsonl`` or ``.txt`` file."""
    objects = content_suffix(path) == ".jsonl"
    for number, line in numbered_lines(path):
        try:
            row = parse_json(line) if objects else {"text": line}
            text, kind = row["text"], row.get("kind")
            if not isinstance(text, str | None) or not isinstance(kind, str | None):
                raise TypeError("text and kind are strings")
            (text or "").encode()  # ValueError for half of a surrogate pair, which no text of the store contains
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f'{path}, line {number}: expected {{"text": ...}} ({e!r})') from None
        yield text, kind


# ----------------------------------------------------------------------------------------- importing


def _check(batch: _Batch, dim: int) -> None:
    if batch.vectors.shape[1] != dim:
        raise UserError(
            f"{batch.file}: vectors of dimension {(width := batch.vectors.shape[1])}, the teacher's is {dim}; set the"
            f" teacher's dim to {width}, or give the vectors of that teacher"
        )
    norms = np.linalg.norm(batch.vectors.astype(np.float32), axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        text = (batch.texts[bad[0]] or "")[:60]
        raise UserError(
            f"{batch.file}, row {batch.start + int(bad[0])}: the vector is zero or not finite ({text!r}); make it again"
        )
    for i, kind in enumerate(batch.kinds):
        if kind not in (None, *KINDS):
            raise UserError(f"{batch.file}, row {batch.start + i}: kind is {kind!r}; expected query or passage")


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

    def add(self, batch: _Batch) -> None:
        _check(batch, self.spec.dim)
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


def _batches(
    files: Sequence[Path | str | tuple[Path | str, Path | str]], text_column: str, vector_column: str
) -> Iterator[_Batch]:
    for path, text_path in _with_texts(files):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        yield from _npy(path, text_path) if path.suffix == ".npy" else _parquet(path, text_column, vector_column)


def _with_texts(
    files: Sequence[Path | str | tuple[Path | str, Path | str]],
) -> list[tuple[Path, Path | None]]:
    """Each file of vectors with the file of its texts, if that is given: as a pair, or next in the list."""
    found: list[tuple[Path, Path | None]] = []
    for file in files:
        if isinstance(file, tuple):
            found.append((Path(file[0]), Path(file[1])))
        elif content_suffix(file) not in (".txt", ".jsonl"):
            found.append((Path(file), None))
        elif found and found[-1][0].suffix == ".npy" and found[-1][1] is None:
            found[-1] = (found[-1][0], Path(file))
        else:
            raise UserError(f"{file}: expected the .npy file of its vectors before it, or Parquet with both")
    return found


def vectors_of(
    files: Sequence[Path | str], texts: Sequence[str], kinds: Sequence[str], spec: VectorSpec
) -> tuple[np.ndarray, np.ndarray]:
    """The normalised vectors ``[len(texts), T]`` in ``files``, float32, and which texts have one (else zeros)."""
    keys, slots = np.unique([digest(*pair) for pair in zip(texts, kinds)], return_inverse=True)
    vectors, filled = np.zeros((len(keys), spec.dim), np.float32), np.zeros(len(keys), bool)
    place = {bytes(key).ljust(16, b"\0"): i for i, key in enumerate(keys.tolist())}
    for batch in _batches(files, "text", "embedding"):
        _check(batch, spec.dim)
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
        for batch in _batches(files, text_column, vector_column):
            spool.add(batch)
        spool.refuse_missing()
        fill_store(partial, texts, spec, Steps(lambda shard, rows: spool.of_shard(shard)[rows]), progress=progress)
        (partial / "spool").unlink()
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sync_folder(folder.parent)
    return Imported(VectorStore.open(folder, texts, spec), spool.rows, spool.extra, spool.duplicates)
