"""The files of a source in parts that several processes read: lines by bytes, Parquet by row groups.

A part can be pickled, and its documents depend on nothing else. Those of all parts, in order, are those of the source.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.assets.corpora import Document
from jasper_jax.data.libraries import Row, require
from jasper_jax.data.parquet import DAMAGED
from jasper_jax.data.parquet_layout import row_groups
from jasper_jax.data.rows import jsonl_rows, parquet_rows, strings
from jasper_jax.data.source_files import label, matching, pattern_of
from jasper_jax.recipe.config_sources import TextSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.text_files import Span, is_divisible, numbered_lines, span_of

LINE_BYTES = 1 << 20
"""Bytes of a part of lines."""
GROUP_ROWS, GROUP_BYTES = 1 << 12, 1 << 22
"""Small row groups are one part until it has so many rows, or bytes by the file's own account."""
CHARACTERS = 1 << 26
"""Characters of a part that are held at once."""
_EACH = 100
"""Characters that a document counts beside its own."""


class Part(NamedTuple):
    """The lines of a file that begin at bytes ``start`` to ``stop``, or its row groups in this range; None: all of a
    file that cannot be divided."""

    source: TextSource
    path: Path
    span: tuple[int, int] | None


def parts(source: TextSource, seed: int) -> Iterator[Part]:
    """The parts of a source of local files, whose order is shuffled."""
    paths = matching(str(pattern_of(source)))
    random.Random(f"{seed}/files").shuffle(paths)
    for path in paths:
        spans = _groups(path) if source.parquet is not None else _lines(path)
        yield from (Part(source, path, span) for span in spans)


def _lines(path: Path) -> Iterator[tuple[int, int] | None]:
    if not is_divisible(path):
        yield None
        return
    size = path.stat().st_size
    yield from ((start, min(start + LINE_BYTES, size)) for start in range(0, size, LINE_BYTES))


def _groups(path: Path) -> Iterator[tuple[int, int] | None]:
    try:
        sizes = [(group.rows, group.size) for group in row_groups(path)]
    except DAMAGED:
        sizes = []
    start, rows, held = 0, 0, 0
    for stop, (more, size) in enumerate(sizes, start=1):
        rows, held = rows + more, held + size
        if rows >= GROUP_ROWS or held >= GROUP_BYTES or stop == len(sizes):
            yield start, stop
            start, rows, held = stop, 0, 0
    if not sizes:  # empty, or damaged: reading it says so
        yield None


def read_part(part: Part) -> tuple[Part, list[tuple[str, str, str]] | None]:
    """The part and its documents, as plain tuples, which are pickled faster. None: they are too many to be held at
    once, or there is an error, which :func:`stream_part` raises."""
    if part.span is None:
        return part, None
    documents, characters = [], 0
    try:
        for document in documents_of(part.source, _rows(part)):
            documents.append((document.text, document.kind, document.source))
            characters += len(document.text) + _EACH
            if characters > CHARACTERS:
                return part, None
    except (UserError, OSError):
        return part, None
    return part, documents


def stream_part(part: Part) -> Iterator[Document]:
    """The documents of a part, read as they are asked for; its errors have the numbers of lines and rows."""
    if part.span is not None and part.source.parquet is None:
        return documents_of(part.source, _line_rows(part, span_of(part.path, *part.span)))
    return documents_of(part.source, _rows(part))


def _rows(part: Part) -> Iterator[Row]:
    if part.source.parquet is not None:
        return parquet_rows(part.path, columns_of(part.source), part.span)
    return _line_rows(part, None if part.span is None else Span(*part.span))


def _line_rows(part: Part, span: Span | None) -> Iterator[Row]:
    if part.source.jsonl is not None:
        return jsonl_rows(part.path, span)
    lines = numbered_lines(part.path, span)
    return (Row(f"{part.path}, line {number}", {"text": line}) for number, line in lines)


def columns_of(source: TextSource) -> list[str]:
    """The columns that are read: those of the text, then that of the kind if there is one."""
    texts = [source.column] if isinstance(source.column, str) else list(source.column)
    return texts + ([source.kind_column] if source.kind_column else [])


def documents_of(source: TextSource, rows: Iterable[Row]) -> Iterator[Document]:
    """The documents of a source's rows."""
    columns, name, given = columns_of(source), label(source), source.kind or "passage"
    for where, values in rows:
        require(columns, values, where)
        kind: Any = given
        if source.kind is None and source.kind_column:
            kinds = strings(values[source.kind_column], source.kind_column, where)
            if kinds not in (["query"], ["passage"]):
                raise UserError(f"{where}: {source.kind_column!r} is {kinds[:1]}; expected query or passage")
            kind = kinds[0]
        for column in columns[: len(columns) - bool(source.kind_column)]:
            for text in strings(values[column], column, where):
                yield Document(text, kind, name)
