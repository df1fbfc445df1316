"""The ArrayRecord shards that both stores are made of."""

from __future__ import annotations

import errno
import json
import pickle
import threading

import numpy as np
import pytest

from jasper_jax.data import shards as sh
from jasper_jax.runtime.errors import UserError


def make(folder, sizes, shard_rows=4):
    shards = sh.shard_map(sizes, shard_rows)
    names = {s: sh.shard_file("texts", s, shards) for s in shards}
    for s in shards:
        sh.write_records(folder / names[s], [f"{s.split} {s.start + i}".encode() for i in range(s.rows)], compress=True)
    return sh.ShardReader(folder, names, "mend it", open_files=2)


def test_the_map_covers_every_row_once():
    shards = sh.shard_map({"train": 10, "held_out": 3}, 4)
    assert [tuple(s) for s in shards] == [
        ("train", 0, 4, 0),
        ("train", 1, 4, 4),
        ("train", 2, 2, 8),
        ("held_out", 0, 3, 0),
    ]
    assert sh.shard_map({"train": 0}, 4) == ()
    assert sh.shard_file("texts", shards[1], shards) == "texts-train.array_record-00001-of-00003"


@pytest.mark.parametrize("size", [0, 1, 90, 127, 128, 129, 16383, 16384, 16385, 1 << 21])
def test_an_example_is_protobufs(size):
    values = {"text": b"t" * size, "kind": b"query", "source": "jsonl:é".encode(), "a": b""}
    message = sh.example_class()()
    for name, value in values.items():
        message.features.feature[name].bytes_list.value.append(value)
    assert sh.example(values) == message.SerializeToString(deterministic=True)


def test_rows_come_in_the_order_asked(tmp_path):
    reader = make(tmp_path, {"train": 21, "held_out": 5})
    asked = [20, 3, 3, 0, 11, 20]
    assert reader.read("train", asked) == [f"train {i}".encode() for i in asked]
    assert reader.read("held_out", np.array([4])) == [b"held_out 4"]
    assert reader.read("train", []) == []
    assert reader.size("train") == 21
    again = pickle.loads(pickle.dumps(reader))
    assert again.read("train", [5]) == [b"train 5"]


@pytest.mark.parametrize("rows", [[21], [-1], [0, 99]])
def test_rows_that_are_not_there_are_refused(tmp_path, rows):
    reader = make(tmp_path, {"train": 21})
    with pytest.raises(IndexError, match="of 21 rows"):
        reader.read("train", rows)
    with pytest.raises(KeyError, match="there are train, held_out"):
        reader.size("test")


def test_threads_share_a_reader_with_fewer_open_files_than_shards(tmp_path):
    reader = make(tmp_path, {"train": 100})
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(100):
            rows = rng.integers(0, 100, 10)
            if reader.read("train", rows) != [f"train {i}".encode() for i in rows]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert len(reader._open) == 2


def test_missing_cut_and_changed_shards_are_named(tmp_path):
    reader = make(tmp_path, {"train": 12})
    name = "texts-train.array_record-0000{}-of-00003"
    (tmp_path / name.format(0)).unlink()
    cut = tmp_path / name.format(1)
    cut.write_bytes(cut.read_bytes()[:1000])
    changed = tmp_path / name.format(2)
    data = bytearray(changed.read_bytes())
    at = data.index(b"train 9")
    data[at] ^= 1
    changed.write_bytes(data)
    for row, message in [(0, "is missing; mend it"), (5, "expected 4 rows, got 0"), (9, "damaged")]:
        with pytest.raises(UserError, match=message):
            reader.read("train", [row])


def test_a_disk_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        sh.write_records(tmp_path / "no" / "folder", [b"x"], compress=False)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(tmp_path / "no" / "folder"))


def test_metadata_describes_only_splits_with_rows(tmp_path):
    import tensorflow_datasets as tfds

    make(tmp_path, {"train": 5})
    features = {"text": tfds.features.Text()}
    sh.write_metadata(tmp_path, "texts", features, sh.shard_map({"train": 5}, 4), {"train": 7}, "about")
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert [(s["name"], s["shardLengths"]) for s in info["splits"]] == [("train", ["4", "1"])]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
