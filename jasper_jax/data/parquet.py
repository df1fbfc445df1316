"""Parquet files in batches of rows that fit the memory, whoever wrote the file.

A few hundred bytes of Parquet can hold a page that unpacks to gigabytes, one long value that a million rows name, or a
row with a list of a billion nulls. So the headers of a row group's pages are read before its pages (the file's footer
may say anything), and decide whether it is read and how many rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jasper_jax.runtime.errors import UserError

DAMAGED = (pa.ArrowException, UnicodeDecodeError, OverflowError, OSError)
"""What reading a damaged file raises."""
LARGEST_PAGE = 1 << 28
"""Bytes of an unpacked page; most writers divide at 1 MiB, DuckDB at 100."""
HELD = 1 << 28
"""Bytes that a batch of a column may unpack to."""
LIST_VALUES = 1 << 24
"""Values of lists in a row group; more where the file has the bytes, ``PER_BYTE`` for each."""
PER_BYTE = 8
_PREFIXES = 7
"""The encoding DELTA_BYTE_ARRAY."""
_WINDOWS = (1 << 12, 1 << 20)
"""Bytes to look for a page's header in: it may have statistics."""


class Pages(NamedTuple):
    """What the page headers of a column chunk say; sizes in bytes, unpacked."""

    largest: int
    total: int
    longest: int
    """What one value of text can be at most, however often it is named: the largest dictionary, or page of prefixes."""
    values: int


def batches(
    path: Path, columns: Sequence[str], rows: int = 1024, groups: tuple[int, int] | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, from 1; at most ``rows`` rows of ``columns``), in order. Strings in lists are arrays of
    type dictionary. ``groups``: only of the row groups from the first to before the second of these numbers.

    Raises:
      UserError: a row group that would fill the memory.
      DAMAGED: the file is damaged.
    """
    with pq.ParquetFile(path) as meta:
        leaves = [meta.schema.column(i) for i in range(len(meta.schema))]
    wanted = [i for i, leaf in enumerate(leaves) if any(f"{leaf.path}.".startswith(f"{name}.") for name in columns)]
    in_lists = [leaves[i].path for i in wanted if _is_text(leaves[i]) and leaves[i].max_repetition_level]
    with path.open("rb") as raw, pq.ParquetFile(path, read_dictionary=in_lists) as file:
        start, stop = groups or (0, file.num_row_groups)
        number = 1 + sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, stop):
            if not file.metadata.row_group(group).num_rows:
                continue  # without pages
            most = rows
            for i in wanted:
                chunk = file.metadata.row_group(group).column(i)
                most = min(most, _rows_at_once(_pages(raw, chunk), chunk, leaves[i], f"{path}, row group {group}"))
            for batch in file.iter_batches(batch_size=most, row_groups=[group], columns=list(columns)):
                yield number, batch
                number += len(batch)


def cells(array: pa.Array, where: str) -> Iterator[Any]:
    """The values of a column of a batch as Python's. UserError: a list whose strings repeat too much."""
    if _bytes_of_lists(array) <= HELD:
        yield from array.to_pylist()
        return
    for i in range(len(array)):
        if (size := _bytes_of_lists(array[i : i + 1])) > HELD:
            raise UserError(f"{where}: a list of {size:,} bytes; at most {HELD:,} are read")
        yield array[i].as_py()


def _bytes_of_lists(array: pa.Array) -> int:
    """Bytes of the strings in lists, each counted as often as it is named; 0 for columns without."""
    leaf = array
    while pa.types.is_list(leaf.type) or pa.types.is_large_list(leaf.type):
        leaf = leaf.flatten()
    if leaf is array or not pa.types.is_dictionary(leaf.type):
        return 0
    lengths = pc.call_function("binary_length", [leaf.dictionary])
    return pc.call_function("sum", [lengths.take(leaf.indices)]).as_py() or 0


def _is_text(leaf: Any) -> bool:
    return leaf.physical_type == "BYTE_ARRAY"


def _has_length(leaf: Any) -> bool:
    return leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"


def _rows_at_once(pages: Pages, chunk: Any, leaf: Any, where: str) -> int:
    """Rows that unpack to at most ``HELD`` bytes. UserError: the chunk cannot be read within bounds."""
    where = f"{where}, column {leaf.path!r}"
    if pages.largest > LARGEST_PAGE:
        raise UserError(
            f"{where}: a page of {pages.largest:,} bytes, at most {LARGEST_PAGE:,} are read; write smaller pages"
        )
    if leaf.max_repetition_level and pages.values > (most := LIST_VALUES + PER_BYTE * chunk.total_compressed_size):
        raise UserError(
            f"{where}: lists of {pages.values:,} values, at most {most:,} are read; write smaller row groups"
        )
    of_bytes = (_is_text(leaf) or _has_length(leaf)) and not leaf.max_repetition_level
    if leaf.max_repetition_level and _has_length(leaf) and (size := leaf.length * pages.values) > HELD:
        raise UserError(f"{where}: lists of {size:,} bytes, at most {HELD:,} are read; write smaller row groups")
    by_value = HELD // max(pages.longest, 1) if of_bytes else HELD
    by_page = HELD if pages.total <= HELD else HELD // pages.largest
    return max(1, min(by_value, by_page))


def _pages(file: IO[bytes], chunk: Any) -> Pages:
    """The sums over the pages of a column chunk. ArrowInvalid: its headers cannot be read."""
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
        at = chunk.dictionary_page_offset
    end = at + chunk.total_compressed_size
    largest = total = longest = values = 0
    while at < end:
        header, length = _header(file, at)
        unpacked, packed = _count(header, 2), _count(header, 3)
        if content := header.get(5) or header.get(8):
            values += _count(content, 1)
            if _count(content, 2 if header.get(5) else 4) == _PREFIXES:
                longest = max(longest, unpacked)
        largest = max(largest, unpacked)
        total += unpacked
        if header.get(1) == 2:  # a dictionary page
            longest = max(longest, unpacked)
        at += length + packed
    return Pages(largest, total, longest, values)


def _count(fields: Any, number: int) -> int:
    value = fields.get(number, 0) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise pa.ArrowInvalid("a page header without its sizes")
    return value


def _header(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The page header at an offset, and its length in bytes."""
    for window in _WINDOWS:
        file.seek(at)
        reader = _Compact(file.read(window))
        try:
            return reader.struct(), reader.at
        except IndexError:
            continue
    raise pa.ArrowInvalid("a page without a header")


class _Compact:
    """Thrift's compact protocol, as far as Parquet's page headers use it. IndexError: the data ends."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise pa.ArrowInvalid("a page header with a number of more than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field number -> value; None for what is not a number or a struct."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):  # a field that is true or false
            return None
        if kind == 3:
            return self.skip(1)
        if kind in (4, 5, 6):
            return self.integer()
        if kind == 7:
            return self.skip(8)
        if kind == 8:
            return self.skip(self.varint())
        if kind == 12 and depth < 8:
            return self.struct(depth + 1)
        raise pa.ArrowInvalid(f"a page header with a field of type {kind}")
