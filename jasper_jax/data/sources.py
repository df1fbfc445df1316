"""Where texts come from: every kind of source becomes one stream of documents, never held in memory.

A source is read in a seeded order of its files, through a buffer in which documents are shuffled; sources
are mixed by weight, document by document. What cannot be read is refused with the file and the line or row.
"""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.assets.corpora import Document
from jasper_jax.data.libraries import hf_splits, require, tfds_splits
from jasper_jax.data.source_files import matching, pattern_of
from jasper_jax.recipe.config_sources import SOURCE_KINDS, Texts, TextSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import parse_json


class Row(NamedTuple):
    """One record of a source and where it stands, for error messages."""

    where: str
    values: Mapping[str, Any]


def label(source: TextSource) -> str:
    """A source's short name in counts and rows, e.g. ``jsonl:notes/*.jsonl``."""
    kind = next(k for k in SOURCE_KINDS if getattr(source, k) is not None)
    return f"{kind}:{getattr(source, kind)}"


# --------------------------------------------------------------------------------------------- files


def _files(pattern: str, seed: int) -> list[Path]:
    found = matching(pattern)
    random.Random(f"{seed}/files").shuffle(found)
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a UTF-8 file, packed with gzip where its name ends in ``.gz``."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as f:
            for number, line in enumerate(f, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, text.rstrip("\r\n")
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{e.object[e.start]:02x} at position {e.start}); "
            f"convert the file, e.g. with iconv -t UTF-8"
        ) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path}, after line {number}: damaged gzip file ({e})") from None


def _text_rows(source: TextSource, seed: int) -> Iterator[Row]:
    for path in _files(str(source.text), seed):
        for number, line in _lines(path):
            yield Row(f"{path}, line {number}", {"text": line})


def jsonl_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one a line; blank lines are none."""
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as e:
            raise UserError(f"{where}: not JSON ({e}): {line[:60]!r}; each line is an object") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: a JSON object is needed, this is {type(values).__name__}")
        yield Row(where, values)


def parquet_rows(path: Path, wanted: list[str]) -> Iterator[Row]:
    """The rows of a Parquet file, of whose columns only those that are wanted are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            require(wanted, file.schema_arrow.names, str(path))
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=wanted):
                    for values in batch.to_pylist():
                        number += 1
                        yield Row(f"{path}, row {number}", values)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError(f"{path}: cannot be read as Parquet ({e})") from None


def _jsonl_rows(source: TextSource, seed: int) -> Iterator[Row]:
    for path in _files(str(source.jsonl), seed):
        yield from jsonl_rows(path)


def _parquet_rows(source: TextSource, seed: int) -> Iterator[Row]:
    for path in _files(str(source.parquet), seed):
        yield from parquet_rows(path, _columns(source))


# -------------------------------------------------------------------------------------- data sets


def _splits(source: TextSource) -> list[str]:
    return [source.split] if isinstance(source.split, str) else list(source.split or [])


def _tfds_rows(source: TextSource, seed: int) -> Iterator[Row]:
    where, data = tfds_splits(str(source.tfds), source.config, _splits(source), _columns(source), "texts.sources")
    for split, rows in data.items():
        for number in range(len(rows)):
            yield Row(f"{where}, split {split}, row {number}", rows[number])


def _hf_rows(source: TextSource, seed: int) -> Iterator[Row]:
    where, data = hf_splits(str(source.hf), source.config, _splits(source), "texts.sources")
    for split, rows in data.items():
        for number, values in enumerate(rows):
            yield Row(f"{where}, split {split}, row {number}", values)


_READERS = {
    "text": _text_rows,
    "jsonl": _jsonl_rows,
    "parquet": _parquet_rows,
    "tfds": _tfds_rows,
    "hf": _hf_rows,
}

# ------------------------------------------------------------------------------------- documents


def _columns(source: TextSource) -> list[str]:
    named = [source.column] if isinstance(source.column, str) else list(source.column)
    return named + ([source.kind_column] if source.kind_column else [])


def strings(value: Any, column: str, where: str) -> list[str]:
    """The texts of one cell: none for null, several for a list."""
    if value is None:
        return [""]  # counted as an empty text
    if isinstance(value, bytes):
        try:
            return [value.decode()]
        except UnicodeDecodeError as e:
            raise UserError(f"{where}: column {column!r} is not UTF-8 ({e.reason} at byte {e.start})") from None
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise UserError(f"{where}: column {column!r} has half of a surrogate pair, which is not Unicode text")
        return [value]
    if isinstance(value, (list, tuple)) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1):
        return [text for element in value for text in strings(element, column, where)]
    raise UserError(f"{where}: column {column!r} holds {type(value).__name__}, text or a list of texts is needed")


def _documents(source: TextSource, row: Row) -> Iterator[Document]:
    wanted = _columns(source)
    require(wanted, list(row.values), row.where)
    kind: Any = source.kind
    if kind is None and source.kind_column:
        said = strings(row.values[source.kind_column], source.kind_column, row.where)
        if said not in (["query"], ["passage"]):
            raise UserError(f"{row.where}: {source.kind_column!r} is {said[:1]}; query or passage is needed")
        kind = said[0]
    for column in wanted[: len(wanted) - bool(source.kind_column)]:
        for text in strings(row.values[column], column, row.where):
            yield Document(text, kind or "passage", label(source))


def read_source(source: TextSource, seed: int) -> Iterator[Document]:
    """The documents of one source in the order of its (shuffled) files; ``limit`` is not applied here."""
    if source.asset is not None:
        from jasper_jax.assets.corpora import read_corpus

        yield from read_corpus(source.asset, _splits(source) or None, source.kind)
        return
    reader = next(r for k, r in _READERS.items() if getattr(source, k) is not None)
    for row in reader(source, seed):
        yield from _documents(source, row)


def check_sources(texts: Texts) -> None:
    """UserError when a source's files, or its asset, are not there at all; nothing is read."""
    for source in texts.sources:
        pattern = pattern_of(source)
        if pattern is not None:
            matching(pattern)
        elif source.asset is not None:
            from jasper_jax.assets.corpora import corpus_splits

            corpus_splits(source.asset, _splits(source) or None)


def shuffled(stream: Iterator[Document], buffer: int, rng: random.Random) -> Iterator[Document]:
    """``stream`` through a buffer of ``buffer`` documents out of which the next one is drawn at random."""
    held: list[Document] = []
    for document in stream:
        if len(held) < buffer:
            held.append(document)
            continue
        i = int(rng.random() * buffer)
        yield held[i]
        held[i] = document
    while held:
        i = int(rng.random() * len(held))
        held[i], held[-1] = held[-1], held[i]
        yield held.pop()


class Mix:
    """All sources of a recipe as one stream: each next document comes from a source drawn by weight.

    A source that has no more drops out, and its share goes to the others; ``exhausted`` counts what it gave.
    """

    def __init__(self, texts: Texts, seed: int):
        self.texts, self.seed = texts, seed
        self.exhausted: dict[str, int] = {}

    def _stream(self, number: int, source: TextSource) -> Iterator[Document]:
        rng = random.Random(f"{self.seed}/source {number}")
        return islice(shuffled(read_source(source, self.seed), self.texts.shuffle_buffer, rng), source.limit)

    def __iter__(self) -> Iterator[Document]:
        rng = random.Random(f"{self.seed}/mix")
        sources = self.texts.sources
        live = {i: self._stream(i, source) for i, source in enumerate(sources)}
        given = [0] * len(sources)
        while live:
            [i] = rng.choices(list(live), weights=[sources[i].weight for i in live])
            document = next(live[i], None)
            if document is None:
                del live[i]
                self.exhausted[f"sources[{i}] {label(sources[i])}"] = given[i]
                continue
            given[i] += 1
            yield document
