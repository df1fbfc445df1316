"""A small Parquet file fills no memory: its pages are measured before they are unpacked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jasper_jax.data import parquet
from jasper_jax.data.parquet_layout import row_groups
from jasper_jax.data.rows import parquet_rows
from jasper_jax.runtime.errors import UserError

MB = 1 << 20


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGEST_PAGE", 3 * MB)
    monkeypatch.setattr(parquet, "HELD", MB)
    monkeypatch.setattr(parquet, "LIST_VALUES", 10_000)


def write(path: Path, column: pa.Array | list[Any], **options: Any) -> Path:
    pq.write_table(pa.table({"text": column, "n": pa.nulls(len(column))}), path, compression="zstd", **options)
    return path


def most_memory(path: Path) -> int:
    """The most that pyarrow held while the file was read."""
    before = pa.total_allocated_bytes()
    most = 0
    for _, batch in parquet.batches(path, ["text"]):
        most = max(most, pa.total_allocated_bytes() - before, batch.nbytes)
    return most


def test_a_page_that_unpacks_to_megabytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ["a" * 5 * MB], use_dictionary=False, write_statistics=False)
    assert path.stat().st_size < 3000
    said = r"a\.parquet, row group 0, column 'text': a page of 5,242,\d+ bytes, at most 3,145,728 are read"
    with pytest.raises(UserError, match=said):
        next(iter(parquet_rows(path, ["text"])))
    dotted = tmp_path / "b.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["a.b", "n"]), dotted, compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match="a page of"):
        next(iter(parquet_rows(dotted, ["a.b"])))
    assert [row.values for row in parquet_rows(path, ["n"])] == [{"n": None}], "the column is not read"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_value_that_many_rows_name(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "a.parquet", ["b" * 100_000] * 2000, data_page_version=version)
    assert path.stat().st_size < 3000
    assert most_memory(path) < 8 * MB
    assert sum(len(row.values["text"]) for row in parquet_rows(path, ["text"])) == 200_000_000


def test_many_pages_of_long_values(tmp_path: Path) -> None:
    values = ["c" * 500_000] * 100
    path = write(tmp_path / "a.parquet", values, use_dictionary=False, data_page_size=1000, write_statistics=False,
                 write_batch_size=1)  # fmt: skip
    assert path.stat().st_size < 20_000
    assert most_memory(path) < 8 * MB
    assert [row.values["text"] for row in parquet_rows(path, ["text"])] == values


@pytest.mark.parametrize("value", [None, "", "d"])
def test_a_row_with_a_list_of_a_million(tmp_path: Path, value: str | None) -> None:
    path = write(tmp_path / "a.parquet", pa.array([[value] * 10**6, ["e"]], pa.list_(pa.string())))
    assert path.stat().st_size < 5000
    with pytest.raises(
        UserError, match=r"column 'text\.list\.element': lists of 1,000,001 values, at most \d+,\d+ are"
    ):
        list(parquet_rows(path, ["text"]))


def test_a_list_that_names_one_long_value_often(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([["f" * 100_000] * 5000], pa.list_(pa.string())))
    with pytest.raises(UserError, match=r"after row 0: a list of 500,000,000 bytes; at most 1,048,576 are read"):
        list(parquet_rows(path, ["text"]))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_that_are_a_prefix_of_the_one_before(tmp_path: Path, version: str) -> None:
    """DELTA_BYTE_ARRAY, of which a page of a megabyte may unpack to a terabyte."""
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}, "data_page_version": version}
    path = write(tmp_path / "a.parquet", ["g" * 100_000] * 2000, write_statistics=False, **options)
    assert path.stat().st_size < 3000
    assert most_memory(path) < 8 * MB
    assert sum(len(row.values["text"]) for row in parquet_rows(path, ["text"])) == 200_000_000


def test_a_value_of_fixed_length_that_many_rows_name(tmp_path: Path) -> None:
    column = pa.array([b"h" * 100_000] * 2000, pa.binary(100_000))
    path = write(tmp_path / "a.parquet", column)
    assert path.stat().st_size < 3000
    assert most_memory(path) < 8 * MB
    write(path, pa.array([[b"h" * 100_000] * 2000], pa.list_(pa.binary(100_000))))
    with pytest.raises(UserError, match=r"lists of 200,000,000 bytes"):
        list(parquet_rows(path, ["text"]))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_what_people_have_is_read(tmp_path: Path, version: str, dictionary: bool) -> None:
    """Texts, lists of them, and vectors, in more bytes than the limits allow at a time."""
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefgh ", k=rng.randrange(2000))) for _ in range(3000)]
    lists = [[text[:9]] * rng.randrange(12) for text in texts]
    vectors = [[rng.random() for _ in range(24)] for _ in texts]
    table = pa.table({"text": texts, "lists": lists, "vectors": pa.array(vectors, pa.list_(pa.float32())), "n": lists})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, use_dictionary=dictionary, data_page_version=version, row_group_size=2000)
    rows = list(parquet_rows(path, ["text", "lists", "vectors"]))
    assert [row.values["text"] for row in rows] == texts
    assert [row.values["lists"] for row in rows] == lists
    assert [row.where for row in rows[1999:2001]] == [f"{path}, row 2000", f"{path}, row 2001"]
    assert len(rows[7].values["vectors"]) == 24
    assert most_memory(path) < 6 * MB


def test_damaged_files_end_in_a_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", [f"text {i}" for i in range(500)]).read_bytes()
    rng = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "b.parquet").write_bytes(data)
        try:
            for row in parquet_rows(tmp_path / "b.parquet", ["text"]):
                assert row.where
        except UserError as error:
            assert "\n" not in str(error)


def test_a_file_without_rows_is_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert list(parquet_rows(tmp_path / "empty.parquet", ["text"])) == []


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_layout_is_what_pyarrow_reads(tmp_path: Path, version: str, compression: str) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({
        "text": ["a" * i for i in range(1000)],
        "lists": [["b"] * (i % 5) for i in range(1000)],
        "struct": [{"x": i, "y": None} for i in range(1000)],
    })  # fmt: skip
    pq.write_table(table, path, data_page_version=version, compression=compression, row_group_size=300)
    found = row_groups(path)
    metadata = pq.ParquetFile(path).metadata
    assert len(found) == metadata.num_row_groups == 4
    for number, group in enumerate(found):
        said = metadata.row_group(number)
        assert (group.rows, group.size, len(group.chunks)) == (said.num_rows, said.total_byte_size, said.num_columns)
        for at, chunk in enumerate(group.chunks):
            of = said.column(at)
            assert chunk.start == (of.dictionary_page_offset if of.has_dictionary_page else of.data_page_offset)
            assert chunk.end - chunk.start == of.total_compressed_size


def number(value: int) -> bytes:
    """A varint of the compact protocol, zigzag."""
    value, out = value << 1, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (b"\x36" + number(1) + b"\x06" + number(3) + number(2), "field 3 twice"),
        (b"\x06" + number(1 << 16), "field 65536 twice, or out of range"),
        (b"\x39\xfc" + b"\xff" * 11, "more than 64 bits"),
        (b"\x39\xfc\xff\xff\x7f", "ends too early"),
        (b"\x35" + number(7), "sizes are missing"),  # the rows in 32 bits, which pyarrow would pass over
    ],
)
def test_what_pyarrow_could_read_otherwise_is_refused(tmp_path: Path, field: bytes, said: str) -> None:
    footer = b"\x49\x1c" + field + b"\x00\x00"  # field 4, a list of one struct
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(pa.ArrowInvalid, match=said):
        row_groups(path)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", b"PAR1\x00\x00\x00\x00PARE"])
def test_a_file_without_a_footer(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    with pytest.raises(pa.ArrowInvalid, match="no footer|ends too early"):
        row_groups(path)
