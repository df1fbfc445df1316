"""The rows of local files (JSONL, CSV, Parquet), and the texts in a cell. Errors name the file and the line or row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jasper_jax.data.libraries import Row, require
from jasper_jax.data.parquet import DAMAGED, batches, cells
from jasper_jax.data.source_files import matching
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.text_files import Span, csv_table, numbered_lines


def jsonl_rows(path: Path, span: Span | None = None) -> Iterator[Row]:
    """The objects of a JSONL file, or of a span of its lines, one a line; skips blank lines."""
    for number, line in numbered_lines(path, span):
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


def parquet_rows(path: Path, columns: list[str], groups: tuple[int, int] | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, or of its row groups in a range; reads only ``columns``."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            require(columns, file.schema_arrow.names, str(path))
        for first, batch in batches(path, columns, groups=groups):
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
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: column {column!r} has half of a surrogate pair, which is not Unicode text"
            ) from None
        return [value]
    if isinstance(value, (list, tuple)) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1):
        return [text for element in value for text in strings(element, column, where)]
    raise UserError(f"{where}: column {column!r} holds {type(value).__name__}; expected text or a list of texts")
