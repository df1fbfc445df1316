"""Where texts come from: every kind of source becomes one stream of documents, never held in memory.

The files of a source are read in a seeded order, its documents are shuffled in a buffer, and sources are mixed by
weight, document by document. Errors name the file and the line or row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jasper_jax.assets.corpora import Document
from jasper_jax.data.libraries import Row, hf_rows, require, tfds_rows
from jasper_jax.data.parquet import DAMAGED, batches, cells
from jasper_jax.data.source_files import label, matching, pattern_of
from jasper_jax.recipe.config_sources import Texts, TextSource
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.files import parse_json
from jasper_jax.runtime.text_files import csv_table, numbered_lines


def jsonl_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one a line; skips blank lines."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as e:
            raise UserError(f"{where}: not JSON ({e}): {line[:60]!r}; expected an object in each line") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(values).__name__}")
        yield Row(where, values)


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header line, of a ``.tsv`` separated by tabs."""
    return (Row(f"{path}, line {number}", cells) for number, cells in csv_table(path))


def parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    """The rows of a Parquet file; reads only ``columns``."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            require(columns, file.schema_arrow.names, str(path))
        for first, batch in batches(path, columns):
            names = batch.schema.names
            rows = zip(*(cells(array, f"{path}, after row {first - 1}") for array in batch.columns), strict=True)
            for number, values in enumerate(rows, first):
                yield Row(f"{path}, row {number}", dict(zip(names, values, strict=True)))
    except DAMAGED as e:
        raise UserError(f"{path}: cannot be read as Parquet ({first_line(e)})") from None


def table_rows(kind: str, pattern: str, columns: list[str], key: str) -> Iterator[Row]:
    """The rows of the files that ``pattern``, at ``key`` of the recipe, names; ``kind``: jsonl, csv or parquet. Of a
    Parquet file only ``columns`` are read."""
    for path in matching(pattern, key):
        if kind == "jsonl":
            yield from jsonl_rows(path)
        elif kind == "csv":
            yield from csv_rows(path)
        else:
            yield from parquet_rows(path, columns)


def _file_rows(source: TextSource, seed: int) -> Iterator[Row]:
    paths = matching(str(pattern_of(source)))
    random.Random(f"{seed}/files").shuffle(paths)
    for path in paths:
        if source.jsonl is not None:
            yield from jsonl_rows(path)
        elif source.parquet is not None:
            yield from parquet_rows(path, _columns(source))
        else:
            yield from (Row(f"{path}, line {number}", {"text": line}) for number, line in numbered_lines(path))


def _columns(source: TextSource) -> list[str]:
    texts = [source.column] if isinstance(source.column, str) else list(source.column)
    return texts + ([source.kind_column] if source.kind_column else [])


def _splits(source: TextSource) -> list[str]:
    return [source.split] if isinstance(source.split, str) else list(source.split or [])


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
    raise UserError(f"{where}: column {column!r} holds {type(value).__name__}; expected text or a list of texts")


def _documents(source: TextSource, row: Row) -> Iterator[Document]:
    columns = _columns(source)
    require(columns, list(row.values), row.where)
    kind: Any = source.kind
    if kind is None and source.kind_column:
        values = strings(row.values[source.kind_column], source.kind_column, row.where)
        if values not in (["query"], ["passage"]):
            raise UserError(f"{row.where}: {source.kind_column!r} is {values[:1]}; expected query or passage")
        kind = values[0]
    for column in columns[: len(columns) - bool(source.kind_column)]:
        for text in strings(row.values[column], column, row.where):
            yield Document(text, kind or "passage", label(source))


def read_source(source: TextSource, seed: int) -> Iterator[Document]:
    """The documents of one source in the order of its (shuffled) files; ``limit`` is not applied here."""
    if source.asset is not None:
        from jasper_jax.assets.corpora import read_corpus

        yield from read_corpus(source.asset, _splits(source) or None, source.kind)
        return
    if source.tfds is not None:
        rows = tfds_rows(source.tfds, source.config, _splits(source), _columns(source), "texts.sources")
    elif source.hf is not None:
        rows = hf_rows(source.hf, source.config, _splits(source), "texts.sources")
    else:
        rows = _file_rows(source, seed)
    for row in rows:
        yield from _documents(source, row)


def check_sources(texts: Texts) -> None:
    """UserError if a source's files, its columns or its asset do not exist; reads a row of each."""
    for source in texts.sources:
        if pattern_of(source) is not None:
            next(read_source(source, 0), None)
        elif source.asset is not None:
            from jasper_jax.assets.corpora import corpus_splits

            corpus_splits(source.asset, _splits(source) or None)


def shuffled(stream: Iterator[Document], buffer: int, rng: random.Random) -> Iterator[Document]:
    """``stream`` through a buffer of ``buffer`` documents, from which the next one is drawn at random."""
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

    When a source runs out, the others get its share; ``exhausted`` has the number of documents it gave.
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
