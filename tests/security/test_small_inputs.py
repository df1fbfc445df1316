"""A small file fills no memory: not as one line, one row, one member, or a stream that unpacks to more and more."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from jasper_jax.data import image_files
from jasper_jax.data.image_files import webdataset_pairs
from jasper_jax.data.image_log import SourceLog
from jasper_jax.recipe.config_sources import ImageSource
from jasper_jax.runtime import text_files, unpacking
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.text_files import csv_table, numbered_lines, text_of

MB = 1 << 20


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


PACKERS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.fixture(autouse=True)
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a hundredth, so that the attacks need a hundredth of their time."""
    monkeypatch.setattr(text_files, "LONGEST", MB // 4)
    monkeypatch.setattr(image_files, "LONGEST", MB // 4)
    monkeypatch.setattr(image_files, "MAX_BYTES", MB)
    monkeypatch.setattr(image_files, "WAITING", 4 * MB)
    monkeypatch.setattr(unpacking, "FREE", 2 * MB)


@contextmanager
def little_memory(most: int = 10 * MB) -> Iterator[None]:
    """The block allocates at most so many bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_line_without_an_end(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(pack(b"short\n" + b"a" * 12 * MB))
    with little_memory(), pytest.raises(UserError, match=r"texts\.jsonl, line 2: longer than 262,144 bytes; divide"):
        list(numbered_lines(path))


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_stream_that_unpacks_to_more_and_more(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(pack((b"a" * 99 + b"\n") * (12 * MB // 100)))
    with little_memory(20 * MB), pytest.raises(UserError, match=r"texts\.txt: unpacks to more than 200 times its size"):
        list(numbered_lines(path))


def test_a_line_as_long_as_allowed_and_text_packed_to_a_tenth(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    lines = ["x" * (MB // 4 - 1), *(f"{i} is a number, {i * i} its square." for i in range(30_000))]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert [line for _, line in numbered_lines(path)] == lines


def test_xz_that_asks_for_a_dictionary_of_a_gigabyte(tmp_path: Path) -> None:
    path = tmp_path / "texts.xz"
    data = bytearray(lzma.compress(b"a\n", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]))
    data[16] = 36  # 2^30 bytes
    data[20:24] = (__import__("zlib").crc32(data[12:20])).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"texts\.xz, after line 0: damaged xz file \(Memory usage limit"):
        list(numbered_lines(path))


def test_a_row_whose_quotation_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + '"\n","\n",' * (MB // 4))
    with little_memory(24 * MB), pytest.raises(UserError, match=r"texts\.csv, line \d+: the row is longer than"):
        list(csv_table(path))


def test_a_recipe_of_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(gzip.compress(b"a: 1\n" * MB))
    with little_memory(64 * MB), pytest.raises(UserError, match=r"recipe\.yaml: has more than 262,144 characters"):
        text_of(path)


# ------------------------------------------------------------------------------------------------- tars


def tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    data = io.BytesIO()
    with tarfile.open(None, "w", data, format=format) as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(data.getvalue()))


def read(path: Path) -> tuple[list[str], SourceLog]:
    source = ImageSource(webdataset=str(path))
    log = SourceLog(source, "images.sources[0]")
    return [example.name for example in webdataset_pairs(source, log)], log


@pytest.fixture
def no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of members alone, without the one of streams."""
    monkeypatch.setattr(unpacking, "RATIO", 10**9)


@pytest.mark.usefixtures("no_ratio")
def test_members_that_are_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar(path, {"1.png": bytes(40 * MB), "1.txt": b"image", "2.png": b"x", "2.txt": bytes(40 * MB), "3.png": b"x",
               "3.txt": b"good"})  # fmt: skip
    with little_memory():
        names, log = read(path)
    assert names == ["a.tar/1", "a.tar/3"]  # the first one is cut, and refused where images are decoded
    assert log.first == {"with a caption that is not UTF-8 text": ["a.tar/2: more than 262,144 bytes"]}


@pytest.mark.usefixtures("no_ratio")
@pytest.mark.parametrize("names", ["{}.png", "x" * 200_000 + "{}.png"])
def test_members_that_wait_for_their_captions(tmp_path: Path, names: str) -> None:
    path = tmp_path / "a.tar"
    tar(path, {names.format(i): bytes(MB if len(names) < 9 else 0) for i in range(40)})
    with pytest.raises(UserError, match=r"a\.tar: \d+ members before .* wait for their image or caption, more than"):
        read(path)


def test_pairs_next_to_each_other_never_wait_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "WAITING", 10_000)
    path = tmp_path / "a.tar"
    pairs = {f"{i}{ending}": b"xy" for i in range(1000) for ending in (".png", ".txt")}
    tar(path, pairs, tarfile.USTAR_FORMAT)
    assert len(read(path)[0]) == 1000


@pytest.mark.usefixtures("no_ratio")
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_name_of_many_megabytes(tmp_path: Path, format: int) -> None:
    path = tmp_path / "a.tar"
    tar(path, {"x" * 16 * MB: b""}, format)
    with little_memory(), pytest.raises(UserError, match=r"a\.tar: damaged, or not a tar file \(a header of"):
        read(path)


def header(kind: bytes, content: bytes = b"", name: str = "1.png") -> bytes:
    """A header of a tar with its content, as ``tarfile`` itself would not write it."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(content)
    return member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def attributes(*pairs: str) -> bytes:
    """``key=value`` as records of a pax header, each with its length."""
    lengths = [next(n for n in range(5, 999) if n == len(f"{n} {pair}\n")) for pair in pairs]
    return "".join(f"{n} {pair}\n" for n, pair in zip(lengths, pairs, strict=True)).encode()


@pytest.mark.usefixtures("no_ratio")
def test_attributes_of_all_members_are_not_copied_for_each(tmp_path: Path) -> None:
    """A global header of 25 KB and 2,000 empty members took 480 MB: a gzipped tar of 200 KB took tens of GB."""
    path = tmp_path / "a.tar"
    many = header(tarfile.XGLTYPE, attributes(*(f"{i:07d}=" for i in range(2_000))))
    path.write_bytes(many + header(tarfile.REGTYPE, name="rest") * 2_000 + header(tarfile.REGTYPE) + bytes(1024))
    with little_memory():
        assert read(path)[1].first == {"without a caption": ["a.tar/1"]}


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_follows_a_header_without_end(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    chain = header(kind, attributes("path=1.png")) * 400
    path.write_bytes(chain + header(tarfile.REGTYPE) + bytes(1024))
    with pytest.raises(UserError, match=r"a\.tar: damaged, or not a tar file \(more than 8 headers for one member"):
        read(path)


_HOLES = ("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9999999999")


@pytest.mark.parametrize(
    "content",
    [
        header(tarfile.XHDTYPE, attributes(*_HOLES)) + header(tarfile.REGTYPE, b"1\n0\n0\n"),
        header(tarfile.XHDTYPE, attributes(*_HOLES)) + header(tarfile.REGTYPE, b"x" * 512),
        header(tarfile.XHDTYPE, attributes("GNU.sparse.map=0,9999999999")) + header(tarfile.REGTYPE),
        header(tarfile.XHDTYPE, attributes("GNU.sparse.map=0,x")) + header(tarfile.REGTYPE),
        header(tarfile.GNUTYPE_SPARSE),
    ],
)
def test_members_with_holes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    for data in (content, header(tarfile.REGTYPE, name="first") + content):
        path.write_bytes(data + bytes(1024))
        with pytest.raises(UserError, match=r"a\.tar: damaged, or not a tar file \(a file with holes"):
            read(path)


def test_a_tar_that_unpacks_to_more_and_more(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar(path, {"rest.bin": bytes(40 * MB)})
    with little_memory(), pytest.raises(UserError, match=r"a\.tar: unpacks to more than 200 times its size"):
        read(path)


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_tars_of_every_compression_are_read(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.tar"
    tar(path, {"1.png": b"x", "1.txt": b"good"})
    path.write_bytes(pack(gzip.decompress(path.read_bytes())))
    assert read(path)[0] == ["a.tar/1"]
