"""A user's text file, whatever wrote it: UTF-8 with or without a byte order mark, compressed or not.

The format is decided by the first bytes and not by the name. A line ends at ``\\n`` (or ``\\r\\n``) only. A
file may come from a stranger: no line of it, and nothing that it unpacks to, can fill the memory.
"""

from __future__ import annotations

import csv
import io
import math
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.unpacking import DAMAGED, unpacked

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""Endings of names of compressed files, after the one of the content."""
LONGEST = 1 << 24
"""Bytes of the longest line, row of a CSV file, or text of a file that is read as one."""
_OTHER = {
    b"PAR1": ("a Parquet file", "name it with the key parquet"),
    b"PK\x03\x04": ("a zip archive (as spreadsheets are)", "unpack it, or save the sheet as CSV"),
    b"%PDF": ("a PDF", "extract its text first"),
    b"\x93NUMPY": ("a NumPy array", "give a file of texts"),
    b"SQLite format 3": ("an SQLite database", "export its texts as JSONL or CSV"),
}
_UTF = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_START = 16


def content_suffix(name: str | Path) -> str:
    """The ending that names the content, in lower case: ``.jsonl`` of ``a.jsonl.zst``."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).suffix.lower()


def _refuse_no_text(start: bytes, where: str) -> None:
    """UserError for a file that is not UTF-8 text, by what it is."""
    for magic, (what, remedy) in _OTHER.items():
        if start.startswith(magic):
            raise UserError(f"{where}: is {what}, expected text; {remedy}")
    encoding = next((name for mark, name in _UTF.items() if start.startswith(mark)), None)
    if encoding is None and len(start) >= 4 and start[:4].count(0) == 2 and start[0:1] != start[1:2]:
        encoding = "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    if encoding:
        raise UserError(f"{where}: is {encoding}, expected UTF-8; convert it: iconv -f {encoding} -t UTF-8")


class Span(NamedTuple):
    """The lines of an uncompressed file that begin at bytes ``start`` to ``stop``."""

    start: int
    stop: int
    number: int = 2
    """Of the first line if ``start`` is not 0; see :func:`span_of`."""


def span_of(path: Path, start: int, stop: int) -> Span:
    """A span with the right number, for which the file is read up to ``start``."""
    left, number, ends = start, 1, True
    with path.open("rb") as file:
        while left and (data := file.read(min(left, 1 << 20))):
            left -= len(data)
            number += data.count(b"\n")
            ends = data.endswith(b"\n")
    return Span(start, stop, number if ends else number + 1)


def is_divisible(path: Path) -> bool:
    """Whether :class:`Span` may be used: a regular file that is not compressed."""
    if not stat.S_ISREG(path.stat().st_mode):
        return False
    with path.open("rb") as file:
        return not unpacked(file, str(path))[1]


def _next_line(stream: IO[bytes], span: Span) -> int:
    """Move to the first line that begins in the span, or to its end; the position."""
    at = span.start - 1
    stream.seek(at)
    while at < span.stop and (end := stream.readline(min(span.stop - at, 1 << 16))):
        at += len(end)
        if end.endswith(b"\n"):
            break
    return at


def _lines(raw: IO[bytes], where: str, span: Span | None = None) -> Iterator[tuple[int, str]]:
    number, at, stop, compression = 0, 0, math.inf, ""
    try:
        stream, compression = unpacked(raw, where)
        if span is not None:
            stop = span.stop
            if span.start:
                number, at = span.number - 1, _next_line(stream, span)
        while at < stop and (line := stream.readline(LONGEST + 1)):
            number += 1
            at += len(line)
            if number == 1:
                _refuse_no_text(line[:_START], where)
            if len(line) > LONGEST:
                raise UserError(f"{where}, line {number}: longer than {LONGEST:,} bytes; divide it into shorter lines")
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, line {number}: not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start});"
            f" convert the file, e.g. with iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    except DAMAGED as error:
        if not compression or getattr(error, "errno", None) is not None:
            raise
        raise UserError(f"{where}, after line {number}: damaged {compression} file ({error})") from None


def numbered_lines(path: Path, span: Span | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a text file, or those of a span of it, with their numbers, from 1, without line ends.

    Raises:
      UserError: the file is no text, another encoding, or damaged, with the line; OSError as ``open`` raises it.
    """
    with path.open("rb") as file:
        yield from _lines(file, str(path), span)


def text_of(path: Path) -> str:
    """The whole text of a file of at most ``LONGEST`` characters; errors as :func:`numbered_lines`."""
    lines, length = [], 0
    for _, line in numbered_lines(path):
        lines.append(line)
        length += len(line) + 1
        if length > LONGEST:
            raise UserError(f"{path}: has more than {LONGEST:,} characters; is it the right file?")
    return "\n".join(lines)


def lines_of(data: bytes, where: str) -> list[str]:
    """The lines of bytes that were read from elsewhere, e.g. standard input; errors as :func:`numbered_lines`."""
    return [line for _, line in _lines(io.BytesIO(data), where)]


class _RowLines:
    """The lines of a CSV file with their ends. UserError: those since ``length`` was 0, one row, are too long; after a
    quotation mark that is never closed all lines are one row."""

    def __init__(self, path: Path):
        self._path, self._lines, self.length = path, numbered_lines(path), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.length += len(line) + 1
        if self.length > LONGEST:
            raise UserError(f"{self._path}, line {number}: the row is longer than {LONGEST:,} characters")
        return line + "\n"


def csv_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header line, each with the number of its last line.

    Cells are separated by tabs in a ``.tsv``, and by semicolons where the header has these and no comma, as
    spreadsheets of many countries write them. UserError, with the line: a row has another number of cells than the
    header, or the file is no CSV.
    """
    lines = _RowLines(path)
    first = next(lines, "")
    separator = "\t" if content_suffix(path) == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for cells in reader:
            lines.length = 0
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns, the header has {len(header)}; put cells"
                    f" that contain {'a tab' if separator == chr(9) else repr(separator)} in double quotes"
                )
            yield reader.line_num, dict(zip(header, cells))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
