"""Every kind of source: what it reads, and how it refuses what it cannot read."""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jasper_jax.data.sources import Document, Mix, read_source, shuffled
from jasper_jax.recipe.config_sources import TextSource
from jasper_jax.runtime.errors import UserError
from tests.data.store_helpers import lines, recipe


def texts_of(source: TextSource, seed: int = 0) -> list[str]:
    return [d.text for d in read_source(source, seed)]


def write_jsonl(path, rows):
    data = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --------------------------------------------------------------------------------------------- files


def test_text_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\n\nthrée\x0bstill three".encode())
    [first, *rest] = read_source(TextSource(text=str(tmp_path / "a.txt"), kind="query"), 0)
    assert first == Document("one", "query", f"text:{tmp_path / 'a.txt'}")
    assert [d.text for d in rest] == ["two", "", "thrée\x0bstill three"]


def test_a_glob_reads_every_file_in_a_seeded_order(tmp_path):
    for i in range(6):
        lines(tmp_path / f"{i}.txt", [f"{i}"])
    source = TextSource(text=str(tmp_path / "*.txt"))
    orders = {seed: texts_of(source, seed) for seed in range(4)}
    assert all(sorted(o) == list("012345") for o in orders.values())
    assert len({tuple(o) for o in orders.values()}) > 1
    assert texts_of(source, 2) == orders[2]


def test_jsonl_columns_lists_kinds_and_gzip(tmp_path):
    rows = [
        {"title": "t1", "body": ["b1", "b2"], "what": "query"},
        {"title": None, "body": [], "what": "passage"},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl.gz", [{"title": "t3", "body": ["b3"], "what": "passage"}])
    source = TextSource(jsonl=str(tmp_path / "*.jsonl*"), column=["title", "body"], kind_column="what")
    found = sorted((d.text, d.kind) for d in read_source(source, 0))
    assert found == [
        ("", "passage"),
        ("b1", "query"),
        ("b2", "query"),
        ("b3", "passage"),
        ("t1", "query"),
        ("t3", "passage"),
    ]
    forced = TextSource(jsonl=str(tmp_path / "a.jsonl"), column="title", kind_column="what", kind="passage")
    assert {d.kind for d in read_source(forced, 0)} == {"passage"}


def test_parquet_streams_row_groups(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(50)], "other": list(range(50)), "tags": [["x", "y"]] * 50})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    assert texts_of(TextSource(parquet=str(tmp_path / "a.parquet"))) == [f"t{i}" for i in range(50)]
    assert texts_of(TextSource(parquet=str(tmp_path / "a.parquet"), column="tags"))[:3] == ["x", "y", "x"]
    categories = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(categories, tmp_path / "b.parquet")
    assert texts_of(TextSource(parquet=str(tmp_path / "b.parquet"))) == ["a", "b", "a"]


BAD_FILES = [
    ("text", b"fine\nbad \xff byte\n", "a.file, line 2: not UTF-8 .byte 0xff at position 4."),
    ("jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3: not JSON"),
    ("jsonl", b'["a"]\n', "line 1: expected a JSON object, got list"),
    ("jsonl", b'{"txet": "a", "id": 3}\n', "line 1: no column 'text'; there are txet, id; did you mean 'txet'"),
    ("jsonl", b'{"text": 3}\n', "line 1: column 'text' holds int; expected text or a list of texts"),
    ("jsonl", b'{"text": ["a", {"b": 1}]}\n', "line 1: column 'text' holds dict"),
    ("jsonl", b'{"text": "\\ud800"}\n', "line 1: column 'text' has half of a surrogate pair"),
    ("parquet", b"PAR1 no", "cannot be read as Parquet"),
]


@pytest.mark.parametrize(("kind", "content", "message"), BAD_FILES)
def test_files_that_cannot_be_read(tmp_path, kind, content, message):
    (tmp_path / "a.file").write_bytes(content)
    with pytest.raises(UserError, match=message):
        texts_of(TextSource(**{kind: str(tmp_path / "a.file")}))


def test_damaged_gzip_is_named_with_its_line(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl.gz", [{"text": str(random.random())} for _ in range(2000)])
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(UserError, match=r"a.jsonl.gz, after line \d+: damaged gzip"):
        texts_of(TextSource(jsonl=str(path)))
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="line 1: not JSON"):
        texts_of(TextSource(jsonl=str(path)))


def test_missing_parquet_columns_and_wrong_types_are_named(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text'; there are body, n"):
        texts_of(TextSource(parquet=str(tmp_path / "a.parquet")))
    with pytest.raises(UserError, match=r"row 1: column 'n' holds int"):
        texts_of(TextSource(parquet=str(tmp_path / "a.parquet"), column="n"))
    with pytest.raises(UserError, match=r"row 1: 'body' is .*'a'.*; expected query or passage"):
        texts_of(TextSource(parquet=str(tmp_path / "a.parquet"), column="body", kind_column="body"))


def test_no_file_matches(tmp_path):
    with pytest.raises(UserError, match=r"no file matches .*nothing"):
        texts_of(TextSource(text=str(tmp_path / "nothing*.txt")))


@pytest.mark.parametrize(
    "keys", [{"text": "a", "column": "b"}, {"jsonl": "a", "split": "b"}, {"asset": "a", "kind_column": "b"}]
)
def test_keys_that_a_source_does_not_read_are_refused(keys):
    with pytest.raises(ValidationError, match=f"{list(keys)[1]} has no meaning for a source of {next(iter(keys))}"):
        TextSource(**keys)


# --------------------------------------------------------------------------------------- data sets


@pytest.fixture
def tfds_folder(tmp_path):
    """A TFDS data set on disk with two splits, made without TensorFlow."""
    import tensorflow_datasets as tfds

    from jasper_jax.data import shards as sh

    features = {"text": tfds.features.Text(), "tags": tfds.features.Sequence(tfds.features.Text())}
    both = tfds.features.FeaturesDict(features)
    shards = sh.shard_map({"train": 5, "held_out": 2}, 3)
    for s in shards:
        records = [
            both.serialize_example({"text": f"{s.split} {s.start + i}", "tags": ["é", "x"]}) for i in range(s.rows)
        ]
        sh.write_records(tmp_path / sh.shard_file("made", s, shards), records, compress=True)
    sh.write_metadata(tmp_path, "made", features, shards, {"train": 1, "held_out": 1}, "made for a test")
    return str(tmp_path)


def test_tfds_folders(tfds_folder):
    assert texts_of(TextSource(tfds=tfds_folder, split="train")) == [f"train {i}" for i in range(5)]
    both = TextSource(tfds=tfds_folder, split=["held_out", "train[:2]"])
    assert texts_of(both) == ["held_out 0", "held_out 1", "train 0", "train 1"]
    assert texts_of(TextSource(tfds=tfds_folder, split="held_out", column="tags")) == ["é", "x"] * 2
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "has the splits .*; choose with split"),
        ({"split": "test"}, "has no split 'test'; there are"),
        ({"split": "train", "column": "body"}, "no column 'body'; there are tags, text|text, tags"),
    ],
)
def test_tfds_keys_that_do_not_fit(tfds_folder, keys, message):
    with pytest.raises(UserError, match=message):
        texts_of(TextSource(tfds=tfds_folder, **keys))


def test_tfds_names_and_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no TFDS data set no_such_builder_anywhere"):
        texts_of(TextSource(tfds="no_such_builder_anywhere"))
    with pytest.raises(UserError, match=r"cannot be read .*dataset_info.json.*file_format='array_record'"):
        texts_of(TextSource(tfds=str(tmp_path)))


def test_tfds_folders_of_another_file_format_are_refused(tfds_folder):
    info = Path(tfds_folder) / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match="without TensorFlow only ArrayRecord can be"):
        texts_of(TextSource(tfds=tfds_folder, split="train"))


def test_hugging_face_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "plain").mkdir()
    write_jsonl(tmp_path / "plain" / "train.jsonl", [{"text": f"t{i}", "n": i} for i in range(5)])
    write_jsonl(tmp_path / "plain" / "test.jsonl", [{"text": "e", "n": 9}])
    folder = str(tmp_path / "plain")
    assert texts_of(TextSource(hf=folder, split="train")) == [f"t{i}" for i in range(5)]
    with pytest.raises(UserError, match=r"has the splits (train, test|test, train); choose with split"):
        texts_of(TextSource(hf=folder))
    with pytest.raises(UserError, match="no split 'dev'"):
        texts_of(TextSource(hf=folder, split="dev"))
    with pytest.raises(UserError, match="cannot be streamed; use limit"):
        texts_of(TextSource(hf=folder, split="train[:2]"))
    with pytest.raises(UserError, match=r"split train, row 0: no column 'body'; there are text, n"):
        texts_of(TextSource(hf=folder, split="train", column="body"))
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    assert texts_of(TextSource(hf=str(tmp_path / "saved"))) == ["a", "b"]
    with pytest.raises(UserError, match="cannot be read"):
        texts_of(TextSource(hf=str(tmp_path / "nowhere")))


def test_hugging_face_without_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jasper-jax\[datasets\]'"):
        texts_of(TextSource(hf="some/set"))


def test_assets_come_from_the_corpora(monkeypatch):
    asked = []

    def read_corpus(asset, splits=None, kind=None):
        asked.append((asset, splits, kind))
        return iter([Document("a", "query", "squad-shifts/nyt")])

    monkeypatch.setattr("jasper_jax.assets.corpora.read_corpus", read_corpus)
    source = TextSource(asset="squad-shifts", split=["nyt", "squad"], kind="query")
    assert list(read_source(source, 0)) == [Document("a", "query", "squad-shifts/nyt")]
    list(read_source(TextSource(asset="lee"), 0))
    assert asked == [("squad-shifts", ["nyt", "squad"], "query"), ("lee", None, None)]


# ------------------------------------------------------------------------------------------- mixing


def documents(n: int):
    return (Document(str(i), "passage", "s") for i in range(n))


@pytest.mark.parametrize("buffer", [1, 7, 50, 100])
def test_the_buffer_gives_every_document_once(buffer):
    out = [d.text for d in shuffled(documents(50), buffer, random.Random(1))]
    assert sorted(map(int, out)) == list(range(50))
    assert (out == [str(i) for i in range(50)]) == (buffer == 1)
    # a document never comes earlier than the buffer allows
    assert all(int(text) < place + buffer for place, text in enumerate(out, start=1))


def test_sources_are_mixed_by_weight_and_exhausted_ones_are_counted(tmp_path):
    a = lines(tmp_path / "a.txt", [f"a{i}" for i in range(3000)]).model_copy(update={"weight": 3.0})
    b = lines(tmp_path / "b.txt", [f"b{i}" for i in range(3000)])
    c = lines(tmp_path / "c.txt", ["c0", "c1"])
    mix = Mix(recipe(a, b, c), seed=0)
    first = [d.text[0] for _, d in zip(range(2000), mix)]
    counts = Counter(first)
    assert counts["c"] == 2
    assert counts["a"] / (counts["a"] + counts["b"]) == pytest.approx(0.75, abs=0.04)
    assert mix.exhausted(2000) == mix.exhausted() == {f"sources[2] text:{tmp_path / 'c.txt'}": 2}
    assert mix.exhausted(2) == {}
    assert [d.text[0] for _, d in zip(range(2000), Mix(recipe(a, b, c), seed=0))] == first
    assert [d.text[0] for _, d in zip(range(2000), Mix(recipe(a, b, c), seed=1))] != first


def test_a_limit_takes_so_many_documents(tmp_path):
    a = lines(tmp_path / "a.txt", [f"a{i}" for i in range(100)]).model_copy(update={"limit": 10})
    found = [d.text for d in Mix(recipe(a), seed=0)]
    assert len(set(found)) == 10
    assert found != [f"a{i}" for i in range(10)]
