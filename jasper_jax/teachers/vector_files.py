"""Files of vectors made elsewhere, read in order: Parquet, and .npy with its texts beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jasper_jax.data.parquet import DAMAGED, batches
from jasper_jax.encoders.prompts import KINDS
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.text_files import content_suffix, numbered_lines

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


class VectorBatch(NamedTuple):
    """Rows ``start`` (from 1) onwards of ``file``."""

    file: Path
    start: int
    texts: Sequence[str | None]
    kinds: Sequence[str | None]
    vectors: np.ndarray


def read_vectors(
    files: Sequence[Path | str | tuple[Path | str, Path | str]],
    *,
    text_column: str = "text",
    vector_column: str = "embedding",
) -> Iterator[VectorBatch]:
    """The rows of all ``files`` in order, in batches. The columns are those of Parquet files; a column ``kind`` may be
    beside them.

    UserError: a file that is missing or cannot be read; texts and vectors of different number.
    """
    for path, text_path in _with_texts(files):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        yield from _npy(path, text_path) if path.suffix == ".npy" else _parquet(path, text_column, vector_column)


def refuse_unusable(batch: VectorBatch, dim: int) -> None:
    """UserError: a vector of another dimension than ``dim``, zero or not finite; an unknown kind."""
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


def _parquet(path: Path, text_column: str, vector_column: str) -> Iterator[VectorBatch]:
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
            yield VectorBatch(path, start, texts, kinds, vectors)
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


def _npy(path: Path, text_file: Path | None) -> Iterator[VectorBatch]:
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
        yield VectorBatch(path, start + 1, [r[0] for r in block_rows], [r[1] for r in block_rows], block)
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
