"""Where a Parquet file says that its parts lie, and how large its pages are before they are unpacked.

Read here and not by pyarrow: its C++ ends the process at some damaged footers, where it makes the object of a column
chunk (a size statistic of the wrong length), and it has nothing that reads a page's header alone. Sources: the Thrift
compact protocol, and ``parquet.thrift`` of Apache Parquet, whose field numbers these are. What pyarrow could read as
something else (a field twice, a number of another width) is refused.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa

from jasper_jax.runtime.files import file_state

_PREFIXES = 7
"""The encoding DELTA_BYTE_ARRAY."""
_WINDOWS = (1 << 12, 1 << 20)
"""Bytes to look for a page's header in: it may have statistics."""
_MAGIC = b"PAR1"
_I32, _I64, _STRUCT, _LISTS = 5, 6, 12, (9, 10)
_DEPTH = 8


class Chunk(NamedTuple):
    """The pages of a column in a row group: where they begin and end in the file."""

    start: int
    end: int


class RowGroup(NamedTuple):
    rows: int
    size: int
    """Bytes, unpacked, as the file says."""
    chunks: tuple[Chunk, ...]
    """One for each leaf of the schema, in its order."""


class Pages(NamedTuple):
    """What the page headers of a column chunk say; sizes in bytes, unpacked."""

    largest: int
    total: int
    longest: int
    """What one value of text can be at most, however often it is named: the largest dictionary, or page of prefixes."""
    values: int


def row_groups(path: Path) -> list[RowGroup]:
    """What the footer says; read once as long as the file stays the same. ArrowInvalid: it cannot be read."""
    return _row_groups(path, file_state(path))


@functools.lru_cache(maxsize=8)
def _row_groups(path: Path, _: tuple[int, ...]) -> list[RowGroup]:
    with path.open("rb") as file:
        footer = _footer(file)
    return [
        RowGroup(_count(group, 3), _count(group, 2), tuple(map(_chunk, _structs(group, 1))))
        for group in _structs(footer, 4)
    ]


def _footer(file: IO[bytes]) -> dict[int, Any]:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > end - 8:
        raise pa.ArrowInvalid("no footer at the end of the file")
    file.seek(end - 8 - length)
    try:
        return _Compact(file.read(length), _I64).struct()
    except IndexError:
        raise pa.ArrowInvalid("a footer that ends too early") from None


def _chunk(column: Any) -> Chunk:
    said = column.get(3)
    start, dictionary = _count(said, 9), _count(said, 11)
    if 0 < dictionary < start:
        start = dictionary
    return Chunk(start, start + _count(said, 7))


def pages(file: IO[bytes], chunk: Chunk) -> Pages:
    """The sums over the pages of a column chunk. ArrowInvalid: its headers cannot be read."""
    at = chunk.start
    largest = total = longest = values = 0
    while at < chunk.end:
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
        raise pa.ArrowInvalid("sizes are missing")
    return value


def _structs(fields: dict[int, Any], number: int) -> list[dict[int, Any]]:
    value = fields.get(number, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise pa.ArrowInvalid("a footer without its row groups or columns")
    return value


def _header(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The page header at an offset, and its length in bytes."""
    for window in _WINDOWS:
        file.seek(at)
        reader = _Compact(file.read(window), _I32)
        try:
            return reader.struct(), reader.at
        except IndexError:
            continue
    raise pa.ArrowInvalid("a page without a header")


class _Compact:
    """Thrift's compact protocol, as far as Parquet's footers and page headers use it. IndexError: the data ends."""

    def __init__(self, data: bytes, numbers: int):
        """``numbers``: the type of the numbers that are kept."""
        self.data, self.at, self.numbers = data, 0, numbers

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
                raise pa.ArrowInvalid("a number of more than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise IndexError

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field number -> value; None for what is not a number, a struct or a list of structs."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            if number in fields or not 0 <= number < 1 << 15:
                raise pa.ArrowInvalid(f"field {number} twice, or out of range")
            kind = head & 15
            fields[number] = None if kind in (1, 2) else self.value(kind, depth)  # 1, 2: true and false, without a byte
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self.skip(1)
        if kind in (4, _I32, _I64):
            value = self.integer()
            return value if kind == self.numbers else None
        if kind == 7:
            return self.skip(8)
        if kind == 8:
            return self.skip(self.varint())
        if kind in _LISTS and depth < _DEPTH:
            return self.list(depth + 1)
        if kind == _STRUCT and depth < _DEPTH:
            return self.struct(depth + 1)
        raise pa.ArrowInvalid(f"a field of type {kind}")

    def list(self, depth: int) -> list[Any] | None:
        head = self.byte()
        kind, size = head & 15, head >> 4 if head >> 4 < 15 else self.varint()
        if kind == _STRUCT:
            return [self.value(kind, depth) for _ in range(size)]
        for _ in range(size):  # each has a byte at least, so this ends with the data
            self.value(kind, depth)
        return None
