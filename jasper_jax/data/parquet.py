"""Parquet files in batches of rows that fit the memory, whoever wrote the file.

A few hundred bytes of Parquet can hold a page that unpacks to gigabytes, one long value that a million rows name, or a
row with a list of a billion nulls. So the headers of a row group's pages are read before its pages (the file's footer
may say anything), and decide whether it is read and how many rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jasper_jax.data.parquet_layout import Chunk, Pages, pages, row_groups
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
        layout = row_groups(path)
        start, stop = groups or (0, len(layout))
        number = 1 + sum(group.rows for group in layout[:start])
        for group in range(start, stop):
            if not layout[group].rows:
                continue  # without pages
            if len(layout[group].chunks) != len(leaves):
                raise pa.ArrowInvalid(f"row group {group} has {len(layout[group].chunks)} columns, not {len(leaves)}")
            most = rows
            for i in wanted:
                chunk = layout[group].chunks[i]
                most = min(most, _rows_at_once(pages(raw, chunk), chunk, leaves[i], f"{path}, row group {group}"))
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


def _rows_at_once(found: Pages, chunk: Chunk, leaf: Any, where: str) -> int:
    """Rows that unpack to at most ``HELD`` bytes. UserError: the chunk cannot be read within bounds."""
    where = f"{where}, column {leaf.path!r}"
    if found.largest > LARGEST_PAGE:
        raise UserError(
            f"{where}: a page of {found.largest:,} bytes, at most {LARGEST_PAGE:,} are read; write smaller pages"
        )
    if leaf.max_repetition_level and found.values > (most := LIST_VALUES + PER_BYTE * (chunk.end - chunk.start)):
        raise UserError(
            f"{where}: lists of {found.values:,} values, at most {most:,} are read; write smaller row groups"
        )
    of_bytes = (_is_text(leaf) or _has_length(leaf)) and not leaf.max_repetition_level
    if leaf.max_repetition_level and _has_length(leaf) and (size := leaf.length * found.values) > HELD:
        raise UserError(f"{where}: lists of {size:,} bytes, at most {HELD:,} are read; write smaller row groups")
    by_value = HELD // max(found.longest, 1) if of_bytes else HELD
    by_page = HELD if found.total <= HELD else HELD // found.largest
    return max(1, min(by_value, by_page))
