"""The text store: what is kept, what is held out, that it is deterministic, and how it is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jasper_jax.data import parts, prepared
from jasper_jax.data.augment import divide, normalised
from jasper_jax.data.selection import HeldOut
from jasper_jax.data.text import Text
from jasper_jax.data.texts import TextRecord, TextStore, build_text_store
from jasper_jax.recipe.config_sources import Augment, TextSource
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.workers import Workers
from tests.data.store_helpers import PLAIN, build_by_two_processes, contents, kill_build, lines, recipe, small_store


def build(texts, folder, seed=0):
    return build_text_store(texts, folder, seed, progress=False)


def rows(store, split="train"):
    return store.read(split, range(store.size(split)))


def passages(n: int, sentences: int = 12) -> list[str]:
    return [" ".join(f"Document {i} has a sentence {k} that says {i * k}." for k in range(sentences)) for i in range(n)]


# ----------------------------------------------------------------------------------------- contents


def test_every_text_is_there_once_and_reads_at_random(tmp_path):
    store = small_store(tmp_path)
    assert (store.size("train"), store.size("held_out")) == (43, 7)
    everything = [r.text for r in rows(store) + rows(store, "held_out")]
    assert sorted(everything) == sorted(f"this is text number {i} of the corpus" for i in range(50))
    assert [s.rows for s in store.shards] == [8, 8, 8, 8, 8, 3, 7]
    asked = [42, 0, 17, 0]
    assert store.read("train", asked) == [rows(store)[i] for i in asked]
    assert [r for s in store.shards if s.split == "train" for r in store.read_shard(s)] == rows(store)
    store.verify()
    assert pickle.loads(pickle.dumps(store)).read("train", [3]) == store.read("train", [3])
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: store.read("train", [i % 43])[0], range(300)))
    assert found == [rows(store)[i % 43] for i in range(300)]


def test_tfds_reads_it_without_tensorflow(tmp_path):
    store = small_store(tmp_path)
    code = f"""
        import sys, tensorflow_datasets as tfds
        data = tfds.builder_from_directory({str(store.folder)!r}).as_data_source()
        assert len(data["train"]) == 43 and len(data["held_out"]) == 7
        for row in list(data["train"]) + list(data["held_out"]):
            print(row["text"].decode(), row["kind"].decode(), row["source"].decode(), sep="|")
        assert "tensorflow" not in sys.modules
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    expected = [f"{r.text}|{r.kind}|text:{tmp_path / 'texts.txt'}" for r in rows(store) + rows(store, "held_out")]
    assert out.stdout.splitlines() == expected


def test_empties_duplicates_and_long_texts_are_counted(tmp_path):
    found = ["a b", "", " a\tb ", "   ", "x" * 30, "x" * 40, "c d"]
    source = lines(tmp_path / "a.txt", found)
    both = [source, TextSource(text=source.text, kind="query")]
    store = build(recipe(*both, max_chars=20), tmp_path / "texts")
    assert sorted(rows(store)) == sorted(
        TextRecord(t, k) for t in ("a b", "c d", "x" * 20) for k in ("query", "passage")
    )
    counts = store.manifest["counts"][f"text:{source.text}"]
    assert counts["query"] == counts["passage"]
    assert counts["query"] == {"documents": 7, "empty": 2, "duplicates": 2, "cut": 2, "train": 3}
    assert any("2 empty" in line for line in store.summary())


def test_documents_are_divided_and_words_shuffled(tmp_path):
    source = lines(tmp_path / "a.txt", passages(300))
    augment = Augment(split_share=0.4, max_sentences=5, shuffle_share=0.02)
    store = build(recipe(source, augment=augment), tmp_path / "texts", seed=4)
    counts = store.manifest["counts"][f"text:{source.text}"]["passage"]
    assert counts["documents"] == 300
    assert counts["documents divided"] / 300 == pytest.approx(0.4, abs=0.1)
    assert counts["train"] == 300 - counts["documents divided"] + counts["pieces"] - counts.get("duplicates", 0)
    assert counts["words shuffled"] > 5
    whole = {r.text for r in rows(store)}
    divided = [p for p in passages(300) if p not in whole]
    pieces = [piece for p in divided for piece in divide(p, augment, 4)]
    assert len(set(pieces) & whole) > 0.9 * len(pieces)


# ----------------------------------------------------------------------------------------- held out


def document_of(text: str) -> set[str]:
    words = text.split()
    return {words[i + 1] for i, w in enumerate(words) if w == "Document"}


def test_no_piece_of_a_held_out_document_is_in_training(tmp_path):
    source = lines(tmp_path / "a.txt", passages(200))
    augment = Augment(split_share=0.7, max_sentences=4, shuffle_share=0.01)
    store = build(recipe(source, held_out=60, augment=augment, count=400), tmp_path / "texts")
    assert (store.size("train"), store.size("held_out")) == (400, 60)
    train = set().union(*(document_of(r.text) for r in rows(store)))
    held = set().union(*(document_of(r.text) for r in rows(store, "held_out")))
    assert len(held) > 5
    assert not train & held


def test_held_out_documents_do_not_depend_on_their_order(tmp_path):
    texts = passages(100, sentences=1)
    first = build(recipe(lines(tmp_path / "a.txt", texts), held_out=20), tmp_path / "first")
    second = build(recipe(lines(tmp_path / "b.txt", texts[::-1]), held_out=20), tmp_path / "second")
    assert set(rows(first, "held_out")) == set(rows(second, "held_out"))
    assert rows(first) != rows(second)
    other = build(recipe(lines(tmp_path / "a.txt", texts), held_out=20), tmp_path / "other", seed=1)
    assert len(set(rows(first, "held_out")) & set(rows(other, "held_out"))) < 15


@pytest.mark.parametrize("size", [0, 1, 7, 40, 1000])
def test_the_smallest_ranks_are_held_out_and_all_others_go_to_training(size):
    rng = random.Random(size)
    documents = [
        (rng.randrange(30), [Text(f"{i}/{k}", "query", "s") for k in range(rng.randint(1, 3))]) for i in range(99)
    ]
    held_out = HeldOut(size)
    trained = [text for rank, texts in documents for text in held_out.push(rank, texts)]
    expected, count = [], 0
    for _, texts in sorted(documents, key=lambda document: document[0]):  # of equal ranks the first
        if count < size:
            expected.append(texts)
            count += len(texts)
    assert held_out.documents() == expected
    assert sorted(trained + [text for texts in expected for text in texts]) == sorted(
        text for _, texts in documents for text in texts
    )


def test_a_text_of_both_kinds_is_not_held_out_while_trained_on(tmp_path):
    query = lines(tmp_path / "q.txt", passages(60, 1)).model_copy(update={"kind": "query"})
    passage = lines(tmp_path / "p.txt", passages(60, 1))
    # only some passages are also read as queries, so the held-out hashes choose one kind without the other
    for seed in range(4):
        texts = recipe(query.model_copy(update={"limit": 40}), passage, held_out=15)
        store = build(texts, tmp_path / f"texts{seed}", seed)
        train = {normalised(r.text) for r in rows(store)}
        assert not train & {normalised(r.text) for r in rows(store, "held_out")}
        assert store.size("held_out") >= 14


# -------------------------------------------------------------------------------------- determinism


def test_two_builds_are_equal_to_the_byte_and_seeds_differ(tmp_path):
    source = lines(tmp_path / "a.txt", passages(80))
    texts = recipe(source, held_out=10, shard_rows=16, augment=Augment(split_share=0.5, shuffle_share=0.1))
    first, second = (build(texts, tmp_path / name, seed=2) for name in ("first", "second"))
    assert contents(first.folder) == contents(second.folder)
    assert build(texts, tmp_path / "third", seed=3).fingerprint != first.fingerprint
    assert [p.name for p in tmp_path.iterdir() if "building" in p.name] == []


def test_the_fingerprint_is_of_content_order_and_shard_map(tmp_path):
    a = lines(tmp_path / "a.txt", ["one", "two", "three"])
    prints = {
        build(recipe(a), tmp_path / "1").fingerprint,
        build(recipe(a, shard_rows=2), tmp_path / "2").fingerprint,
        build(recipe(a.model_copy(update={"kind": "query"})), tmp_path / "3").fingerprint,
        build(recipe(a, held_out=1), tmp_path / "4").fingerprint,
    }
    assert len(prints) == 4
    same = recipe(lines(tmp_path / "b.txt", ["one", "two", "three"]))
    assert build(same, tmp_path / "5").fingerprint in prints


def _build_at_once(texts_json, folder, out):
    from jasper_jax.recipe.config_sources import Texts

    store = build_text_store(Texts.model_validate_json(texts_json), folder, 0, progress=False)
    out.put((os.getpid(), store.fingerprint))


def test_three_processes_build_one_store(tmp_path):
    texts = recipe(lines(tmp_path / "a.txt", passages(200)), held_out=10, shard_rows=16)
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [
        context.Process(target=_build_at_once, args=(texts.model_dump_json(), str(tmp_path / "texts"), out))
        for _ in range(3)
    ]
    for w in workers:
        w.start()
    found = [out.get(timeout=120) for _ in workers]
    for w in workers:
        w.join()
    assert len({fingerprint for _, fingerprint in found}) == 1
    alone = build(texts, tmp_path / "alone")
    assert contents(alone.folder) == contents(tmp_path / "texts")


@pytest.fixture(scope="module")
def two_processes():
    with Workers(2, alone=0.0) as workers:
        yield workers


def test_one_process_and_two_build_the_same_bytes(tmp_path, two_processes, monkeypatch):
    monkeypatch.setattr(parts, "LINE_BYTES", 1 << 12)
    monkeypatch.setattr(parts, "GROUP_ROWS", 16)
    monkeypatch.setattr(prepared, "DOCUMENTS", 7)
    table = pa.table({"text": [*passages(90), "", *passages(20)[::2]]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=10)
    a = lines(tmp_path / "a.txt", passages(200, 3)).model_copy(update={"kind": "query", "limit": 150})
    sources = [a, lines(tmp_path / "b.txt", passages(20)), TextSource(parquet=str(tmp_path / "p.parquet"))]
    augment = Augment(split_share=0.6, max_sentences=4, shuffle_share=0.1)
    for count in (None, 300):
        texts = recipe(*sources, held_out=20, shard_rows=32, max_chars=300, count=count, augment=augment)
        one = build(texts, tmp_path / f"one{count}")
        two = build_text_store(texts, tmp_path / f"two{count}", 0, progress=False, workers=Shared(two_processes))
        assert contents(two.folder) == contents(one.folder)
        assert one.summary()


def test_an_error_behind_the_count_is_not_met_however_far_ahead_is_read(tmp_path, two_processes, monkeypatch):
    monkeypatch.setattr(prepared, "DOCUMENTS", 3)
    monkeypatch.setattr(parts, "LINE_BYTES", 64)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(60)) + "{")
    source = TextSource(jsonl=str(tmp_path / "a.jsonl"))
    texts = recipe(source, lines(tmp_path / "b.txt", ["one", "two"]), count=40, shuffle_buffer=4)
    one = build(texts, tmp_path / "one")
    two = build_text_store(texts, tmp_path / "two", 0, progress=False, workers=Shared(two_processes))
    assert contents(two.folder) == contents(one.folder)
    assert any("b.txt ran out after 2 documents" in note for note in two.manifest["notes"])
    with pytest.raises(UserError, match="a.jsonl, line 61: not JSON"):
        build_text_store(
            recipe(source, shuffle_buffer=4), tmp_path / "all", 0, progress=False, workers=Shared(two_processes)
        )


class Shared(Workers):
    """Workers that several builds use."""

    def __init__(self, workers: Workers):
        self.__dict__ = workers.__dict__

    def close(self) -> None:
        """Their fixture closes them."""


@pytest.mark.parametrize("builds", [build_text_store, build_by_two_processes])
def test_a_killed_build_starts_again(tmp_path, builds):
    texts = recipe(lines(tmp_path / "a.txt", passages(2000, 3)), held_out=10, shard_rows=16)
    unfinished = kill_build(builds, texts, tmp_path / "texts")
    store = build(texts, tmp_path / "texts")
    store.verify()
    assert not unfinished.exists()
    assert contents(build(texts, tmp_path / "again").folder) == contents(store.folder)


# ----------------------------------------------------------------------------------------- refusals


def test_the_same_recipe_opens_another_is_refused(tmp_path):
    a = lines(tmp_path / "a.txt", [f"text {i}" for i in range(20)])
    store = build(recipe(a), tmp_path / "texts")
    before = contents(store.folder)
    assert build(recipe(a), tmp_path / "texts").fingerprint == store.fingerprint
    changed = recipe(a.model_copy(update={"weight": 2.0}), max_chars=10)
    message = r"texts.sources\[0\].weight \(1.0 there, 2.0 asked\); texts.max_chars \(20000 there, 10 asked\)"
    with pytest.raises(UserError, match=message):
        build(changed, tmp_path / "texts")
    with pytest.raises(UserError, match=r"seed \(0 there, 1 asked\); set run_dir=\.\.\. \(or"):
        build(recipe(a), tmp_path / "texts", seed=1)
    assert contents(store.folder) == before


def test_keys_added_in_a_later_version_count_as_their_defaults(tmp_path):
    a = lines(tmp_path / "a.txt", ["one", "two"])
    store = build(recipe(a, augment=Augment()), tmp_path / "texts")
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["texts"]["augment"]["language"]
    path.write_text(json.dumps(files.sealed(manifest)))
    build(recipe(a, augment=Augment()), tmp_path / "texts")
    with pytest.raises(UserError, match=r"texts.augment.language \('en' there, 'de' asked\)"):
        build(recipe(a, augment=Augment(language="de")), tmp_path / "texts")


def test_too_few_texts(tmp_path):
    one = lines(tmp_path / "a.txt", ["only one"])
    with pytest.raises(UserError, match="1 documents leave 1 texts for training after 0 held out"):
        build(recipe(one), tmp_path / "texts")
    many = lines(tmp_path / "b.txt", [f"text {i}" for i in range(20)])
    with pytest.raises(UserError, match=r"0 texts for training after 20 held out \(texts.held_out: 500\)"):
        build(recipe(many, held_out=500), tmp_path / "texts")
    with pytest.raises(UserError, match="the sources give no documents$"):
        build(recipe(lines(tmp_path / "c.txt", [])), tmp_path / "texts")
    assert not (tmp_path / "texts").exists()


def test_a_count_that_is_not_reached_is_shown(tmp_path, capsys):
    a = lines(tmp_path / "a.txt", [f"text {i}" for i in range(20)])
    store = build_text_store(recipe(a, lines(tmp_path / "b.txt", []), count=30), tmp_path / "texts", 0)
    assert store.size("train") == 20
    assert "warning: texts.count is 30, the sources gave 20" in store.manifest["notes"]
    assert any("ran out after 20 documents" in n for n in store.manifest["notes"])
    assert any("b.txt gave no document" in n for n in store.manifest["notes"])
    assert "texts.count is 30, the sources gave 20" in capsys.readouterr().err


def test_a_count_is_met_exactly(tmp_path):
    a = lines(tmp_path / "a.txt", passages(100))
    texts = recipe(a, count=77, held_out=13, augment=Augment(split_share=1.0, max_sentences=3))
    store = build(texts, tmp_path / "texts")
    assert (store.size("train"), store.size("held_out"), store.manifest["notes"]) == (77, 13, [])


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    a = recipe(lines(tmp_path / "a.txt", ["one", "two"]))
    (tmp_path / "texts" / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match="not a text store"):
        build(a, tmp_path / "texts")
    (tmp_path / "texts" / "thesis.doc").unlink()
    assert build(a, tmp_path / "texts").size("train") == 2


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "rewritten"])
def test_damaged_stores_are_found(tmp_path, damage):
    store = small_store(tmp_path)
    path = store.folder / store.manifest["shards"][2]["file"]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:  # another, whole shard, and its sha256 in the manifest: only the fingerprint can tell
        other = store.manifest["shards"][3]
        shutil.copy(store.folder / other["file"], path)
        manifest = json.loads((store.folder / "manifest.json").read_text())
        manifest["shards"][2] |= {"sha256": other["sha256"], "bytes": other["bytes"]}
        (store.folder / "manifest.json").write_text(json.dumps(files.sealed(manifest)))
    message = {
        "missing": f"{path.name}: shard is missing",
        "cut": f"{path.name}: shard has .* bytes instead of",
        "flipped": f"{path.name}: sha256 is",
        "rewritten": "fingerprint is",
    }[damage]
    with pytest.raises(UserError, match=message):
        TextStore.open(store.folder).verify()


def test_opening_nothing(tmp_path):
    with pytest.raises(UserError, match="no complete text store here"):
        TextStore.open(tmp_path)


def test_an_error_in_a_source_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nfine too\n\xff\n")
    source = TextSource(text=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="line 3: not UTF-8"):
        build(recipe(source, augment=PLAIN), tmp_path / "texts")
    assert not (tmp_path / "texts").exists()
    lines(tmp_path / "a.txt", ["fine", "fine too"])
    assert build(recipe(source), tmp_path / "texts").size("train") == 2
