"""Every text a user may give is read for what it is, not for its name; every file is opened with an encoding."""

from __future__ import annotations

import ast
import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

import jasper_jax
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.text_files import content_suffix, csv_table, lines_of, numbered_lines, text_of

LINES = ["First, naïve.", "", "Zweite Zeile ✓"]
DATA = "\n".join(LINES).encode()


def zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["text.txt", "text.gz"])
def test_the_first_bytes_say_how_a_file_is_compressed(tmp_path, pack, mark, name):
    path = tmp_path / name
    path.write_bytes(pack(mark + DATA))
    assert list(numbered_lines(path)) == list(enumerate(LINES, 1))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_joined_archives_are_one_file_and_damage_is_named(tmp_path, pack):
    path = tmp_path / "text"
    path.write_bytes(pack(b"one\n") + pack(b"two\n"))
    assert text_of(path) == "one\ntwo"
    whole = pack(bytes(range(32, 96)) * 4000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"text, after line 0: damaged (gzip|bzip2|xz|Zstandard) file"):
        list(numbered_lines(path))


def test_lines_end_where_a_line_ends():
    assert lines_of(b"a\r\nb\x0bc\xe2\x80\xa8d\n\n", "-") == ["a", "b\x0bc\u2028d", ""]
    assert lines_of(b"", "-") == []


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("naïve".encode("utf-16"), "is UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8"),
        ("naïve".encode("utf-16-le"), "is UTF-16LE, expected UTF-8"),
        ("naïve".encode("utf-16-be"), "is UTF-16BE, expected UTF-8"),
        ("naïve".encode("utf-32"), "is UTF-32, expected UTF-8"),
        (gzip.compress("naïve".encode("utf-16"), mtime=0), "is UTF-16, expected UTF-8"),
        ("one\nnaïve".encode("latin-1"), "line 2: not UTF-8 .byte 0xef at position 2."),
        (b"PAR1....", "is a Parquet file, expected text; name it with the key parquet"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"%PDF-1.7", "is a PDF"),
    ],
)
def test_what_is_not_utf_8_is_named_for_what_it_is(tmp_path, data, what):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"notes\.jsonl.*{what}"):
        list(numbered_lines(path))


def test_csv_and_tsv(tmp_path):
    path = tmp_path / "pairs.tsv.gz"
    path.write_bytes(gzip.compress('query\tpassage\n"a\nb"\tc, d\n\n'.encode("utf-8-sig")))
    assert list(csv_table(path)) == [(3, {"query": "a\nb", "passage": "c, d"})]
    path = tmp_path / "pairs.csv"
    path.write_text("query;passage\r\na;b, c\r\n", "utf-8")
    assert list(csv_table(path)) == [(2, {"query": "a", "passage": "b, c"})]
    path.write_text("", "utf-8")
    assert list(csv_table(path)) == []
    path.write_text("query,passage\na,b,c\n", "utf-8")
    with pytest.raises(UserError, match=r"pairs\.csv, line 2: 3 columns, the header has 2; put cells that contain ','"):
        list(csv_table(path))


def test_the_content_of_a_name():
    names = ["a.jsonl", "a.JSONL.zst", "a.b.csv.xz", "a", "a.gz"]
    assert [content_suffix(name) for name in names] == [".jsonl", ".jsonl", ".csv", "", ""]


NO_FILES = ("tarfile", "os", "gzip", "store", "self._negatives(texts)")
"""Whose ``open`` opens no text file."""


def in_the_locales_encoding(call: ast.Call) -> bool:
    """Whether a call opens a file, or a pipe, as text without naming an encoding."""
    words = {word.arg: word.value for word in call.keywords}
    if "encoding" in words:
        return False
    attribute = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = [*call.args, *([words["mode"]] if "mode" in words else [])]
    texts = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    binary = any("b" in mode for mode in texts if set(mode) <= set("rwaxb+"))
    opens = not attribute or not call.args or len(texts) == len(given)  # not store.open(teacher, texts)
    return (
        (name == "read_text" and not call.args)
        or (name == "write_text" and len(call.args) < 2)
        or (name == "open" and owner not in NO_FILES and opens and not binary)
        or (name in ("NamedTemporaryFile", "TemporaryFile", "fdopen", "TextIOWrapper") and not binary)
        or (name in ("run", "Popen", "check_output") and not words.keys().isdisjoint({"text", "universal_newlines"}))
    )


def without_encoding(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and in_the_locales_encoding(node)]


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(x)", True),
        ("path.write_text(x, 'utf-8')", False),
        ("open(p)", True),
        ("open(p, 'a')", True),
        ("open(p, 'rb')", False),
        ("open(p, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('wb')", False),
        ("store.open(teacher, texts)", False),
        ("subprocess.run(x, text=True)", True),
    ],
)
def test_the_search_for_encodings_finds_them(code, found):
    assert bool(without_encoding(ast.parse(code))) == found


def test_every_text_file_is_opened_with_an_encoding():
    package = Path(jasper_jax.__file__).parent
    found = {
        f"{path.relative_to(package)}:{line}"
        for path in package.rglob("*.py")
        for line in without_encoding(ast.parse(path.read_text("utf-8")))
    }
    assert not found
