"""The parts of files: together they are the file, and errors are where they are in the whole."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jasper_jax.data import parts as module
from jasper_jax.data.parts import parts, read_part, stream_part
from jasper_jax.data.sources import read_source
from jasper_jax.recipe.config_sources import TextSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.workers import Workers


def in_parts(source: TextSource) -> tuple[list[str], int]:
    """The texts by parts, read and streamed, and the number of parts."""
    every = [pickle.loads(pickle.dumps(part)) for part in parts(source, 0)]
    found = [read_part(part)[1] for part in every]
    assert found == [list(stream_part(part)) for part in every]
    return [text for documents in found for text, _, _ in documents or ()], len(every)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_lines_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: str) -> None:
    monkeypatch.setattr(module, "LINE_BYTES", size)
    rng = random.Random(size)
    texts = ["".join(rng.choices("aé€𝄞 ", k=rng.randrange(12))) for _ in range(60)]
    data = "\ufeff" + (end or "\n").join(texts) + end
    (tmp_path / "a.txt").write_bytes(data.encode())
    found, number = in_parts(TextSource(text=str(tmp_path / "a.txt")))
    assert found == (texts if end or texts[-1] else texts[:-1])
    assert number == -(-len(data.encode()) // size)


def test_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 20)
    texts = [f"t{i}" for i in range(50)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    source = TextSource(parquet=str(tmp_path / "a.parquet"))
    assert in_parts(source) == (texts, 3)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert read_part(next(parts(source, 0)))[1] in ([], None)
    assert list(read_source(source, 0)) == []


def test_a_compressed_file_is_one_part_that_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    [part] = parts(TextSource(text=str(tmp_path / "a.txt.gz")), 0)
    assert read_part(part) == (part, None)
    assert [document.text for document in stream_part(part)] == ["one", "two"]


def test_a_part_that_is_too_large_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHARACTERS", 3000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": [""] * 31}) + "\n" + json.dumps({"text": "x" * 2950}) + "\n")
    monkeypatch.setattr(module, "LINE_BYTES", 60)
    source = TextSource(jsonl=str(tmp_path / "a.jsonl"))
    found = [read_part(part)[1] for part in parts(source, 0)]
    assert [None if documents is None else len(documents) for documents in found if documents != []] == [None, None]
    assert [len(document.text) for document in read_source(source, 0, Workers(1))] == [0] * 31 + [2950]


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_errors_come_after_the_documents_before_them_with_the_number_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(module, "LINE_BYTES", size)
    rows = [json.dumps({"text": f"t{i}"}) for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows[:20], "", "{", *rows[20:]]))
    documents = read_source(TextSource(jsonl=str(tmp_path / "a.jsonl")), 0, Workers(1))
    assert [next(documents).text for _ in range(20)] == [f"t{i}" for i in range(20)]
    with pytest.raises(UserError, match="line 22: not JSON"):
        next(documents)


def test_row_numbers_of_later_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 5)
    kinds = ["query"] * 17 + ["other"]
    pq.write_table(pa.table({"text": ["a"] * 18, "kind": kinds}), tmp_path / "a.parquet", row_group_size=5)
    source = TextSource(parquet=str(tmp_path / "a.parquet"), kind_column="kind")
    with pytest.raises(UserError, match="row 18: 'kind' is"):
        list(read_source(source, 0, Workers(1)))
