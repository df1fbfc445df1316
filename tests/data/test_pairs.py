"""The pair store: what trains, what is held out or tested, that it is a function of its content, how it is refused."""

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
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.data.image_log import Example
from jasper_jax.data.pair_split import Entry, Pairs, divide, entry_of
from jasper_jax.data.pairs import Pair, PairStore, build_pair_store
from jasper_jax.recipe.config_sources import Images, ImageSource
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from tests.data.picture_helpers import folder, images, many, openmoji_is_cached, picture, tar
from tests.data.store_helpers import contents, kill_build

SPLITS = ("train", "held_out", "test")


def build(recipe: Images, place: Path, seed: int = 0) -> PairStore:
    return build_pair_store(recipe, place, seed, progress=False)


def rows(store: PairStore, split: str) -> list[Pair]:
    return store.read(split, range(store.size(split)))


def sizes(store: PairStore) -> tuple[int, ...]:
    return tuple(store.size(split) for split in SPLITS)


# ----------------------------------------------------------------------------------------- contents


def test_every_pair_is_there_once_and_reads_at_random(tmp_path):
    source = many(tmp_path / "p", 30)
    store = build(images(source, held_out=4, test=5), tmp_path / "images")
    assert sizes(store) == (21, 4, 5)
    assert [s.rows for s in store.shards] == [8, 8, 5, 4, 5]
    everything = {p.name: p for split in SPLITS for p in rows(store, split)}
    assert len(everything) == 30
    for i in range(30):
        pair = everything[f"{i}.png"]
        assert (pair.image, pair.caption) == (picture(i), f"picture {i}")  # the very bytes of the source
        assert pair.group.startswith("image ")
    train = rows(store, "train")
    assert store.read("train", [20, 0, 7, 0]) == [train[i] for i in (20, 0, 7, 0)]
    assert store.captions("train", 3, 9) == [p.caption for p in train[3:9]]
    assert [p.name for p in train] != sorted((p.name for p in train), key=lambda n: int(n[:-4]))
    store.verify()
    assert pickle.loads(pickle.dumps(store)).read("test", [3]) == store.read("test", [3])
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: store.read("train", [i % 21])[0], range(200))) == (train * 10)[:200]
    assert store.summary() == [f"folder:{tmp_path / 'p'}: 4 held_out, 30 pairs, 5 test, 21 train"]


def test_tfds_reads_it_without_tensorflow(tmp_path):
    store = build(images(many(tmp_path / "p", 12), held_out=2, test=3), tmp_path / "images")
    code = f"""
        import hashlib, sys, tensorflow_datasets as tfds
        data = tfds.builder_from_directory({str(store.folder)!r}).as_data_source()
        for split in ("train", "held_out", "test"):
            for row in data[split]:
                print(hashlib.sha256(row["image"]).hexdigest(), row["caption"].decode(), row["name"].decode(), sep="|")
        assert "tensorflow" not in sys.modules
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    pairs = [p for split in SPLITS for p in rows(store, split)]
    assert [line.split("|")[1:] for line in out.stdout.splitlines()] == [[p.caption, p.name] for p in pairs]


def test_the_store_of_pairs_is_itself_a_source(tmp_path):
    first = build(images(many(tmp_path / "p", 12)), tmp_path / "first")
    again = ImageSource(tfds=str(first.folder), split="train", group="group")
    second = build(images(again), tmp_path / "second")
    assert [(p.image, p.caption, p.group) for p in rows(second, "train")] == [
        (p.image, p.caption, p.group) for p in rows(first, "train")
    ]


def test_duplicates_are_dropped_and_counted(tmp_path):
    pairs = [{"image": f"{i}.png", "caption": f"picture  {i}"} for i in range(4)]  # white space is no difference
    other = folder(tmp_path / "q", pairs, {f"{i}.png": picture(i) for i in range(4)})
    store = build(images(many(tmp_path / "p", 6), other), tmp_path / "images")
    assert sizes(store) == (6, 0, 0)
    counts = store.manifest["counts"]
    assert sum(c.get("duplicates", 0) for c in counts.values()) == 4
    assert sum(c.get("train", 0) for c in counts.values()) == 6
    assert (counts[f"folder:{tmp_path / 'p'}"]["pairs"], counts[f"folder:{tmp_path / 'q'}"]["pairs"]) == (6, 4)


def test_what_was_left_out_is_recorded(tmp_path):
    source = many(tmp_path / "p", 6)
    (tmp_path / "p" / "alone.png").write_bytes(picture(77))
    (tmp_path / "p" / "3.png").write_bytes(b"broken")
    store = build(images(source, skip_share=0.5), tmp_path / "images")
    [skipped] = store.manifest["skipped"].values()
    assert skipped["without a caption"] == {"count": 1, "first": ["alone.png"]}
    assert skipped["that cannot be used as images"]["count"] == 1
    assert "1 without a caption" in store.summary()[0]
    assert sizes(store) == (5, 0, 0)
    with pytest.raises(UserError, match=r"2 of 7 in folder:.* more than images\.skip_share 0\.2"):
        build(images(source, skip_share=0.2), tmp_path / "strict")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["images", "p"]


# ---------------------------------------------------------------------------------------- the split


def grouped(tmp_path: Path, groups: int = 20, members: int = 3) -> ImageSource:
    pairs = [(g, m) for g in range(groups) for m in range(members)]
    captions = [{"image": f"{g}-{m}.png", "caption": f"thing {g} seen {m}", "g": f"g{g}"} for g, m in pairs]
    return folder(tmp_path, captions, {f"{g}-{m}.png": picture(100 * g + m) for g, m in pairs}, group="g")


def test_groups_stay_together_and_give_one_pair(tmp_path):
    store = build(images(grouped(tmp_path / "p"), held_out=4, test=6), tmp_path / "images")
    assert sizes(store) == ((20 - 10) * 3, 4, 6)
    of = {split: [p.group for p in rows(store, split)] for split in SPLITS}
    assert not set(of["train"]) & (set(of["held_out"]) | set(of["test"]))
    assert len({*of["held_out"], *of["test"]}) == 10
    assert {p.name[-5] for split in ("held_out", "test") for p in rows(store, split)} == {"0"}  # the first by name
    [counts] = store.manifest["counts"].values()
    assert counts["left out (others of their groups are held out or tested)"] == 20


def test_captions_of_an_image_stay_together(tmp_path):
    pairs = [{"image": f"{i}.png", "caption": [f"a{i}", f"b{i}", f"c{i}"]} for i in range(10)]
    source = folder(tmp_path / "p", pairs, {f"{i}.png": picture(i) for i in range(10)})
    store = build(images(source, held_out=2, test=3), tmp_path / "images")
    assert sizes(store) == (15, 2, 3)
    train = {p.image for p in rows(store, "train")}
    assert not train & {p.image for split in ("held_out", "test") for p in rows(store, split)}


def test_too_few_groups_are_said_and_too_few_pairs_refused(tmp_path):
    source = many(tmp_path / "p", 10)
    with pytest.raises(UserError, match=r"10 distinct pairs leave 1 for training after 6 tested .* 3 held out"):
        build(images(source, test=6, held_out=3), tmp_path / "images")
    rows_ = [{"image": f"{i}.png", "caption": "same", "g": str(i // 3)} for i in range(10)]
    same = folder(tmp_path / "q", rows_, {f"{i}.png": picture(i) for i in range(10)}, group="g")
    store = build(images(same, test=2), tmp_path / "same")
    assert store.manifest["notes"] == [
        "warning: 1 pairs of test repeat another's caption; retrieval cannot tell them apart"
    ]
    assert sizes(store)[2] == 2


EXAMPLES = st.lists(
    st.builds(
        Example,
        image=st.integers(0, 12).map(lambda i: b"%d" % i),
        caption=st.integers(0, 8).map(str),
        name=st.integers(0, 20).map(str),
        group=st.integers(0, 7).map(str),
        eligible=st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


def divided(examples: list[Example], seed: int, test: int, held_out: int) -> dict[str, list[Entry]]:
    pairs = Pairs()
    for row, example in enumerate(examples):
        pairs.add(entry_of(example, row, 0))
    return divide(pairs.groups(), seed, test, held_out)


@settings(deadline=None, max_examples=150)
@given(EXAMPLES, st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.randoms(use_true_random=False))
def test_rules_of_the_split(examples, seed, test, held_out, rng):
    splits = divided(examples, seed, test, held_out)
    train, held, tested = (splits[s] for s in SPLITS)
    chosen = [*tested, *held]
    assert all(e.eligible for e in chosen)
    assert not {e.group for e in train} & {e.group for e in chosen}
    assert not {e.image for e in train} & {e.image for e in chosen}  # also where an image is in two groups
    assert len({e.group for e in chosen}) == len(chosen)
    assert len({e.pair for e in (*train, *chosen)}) == len(train) + len(chosen)
    # as many as asked, unless the groups run out; groups are counted by hand
    pieces: list[tuple[set, list]] = []
    for e in examples:
        keys = {("g", e.group), ("i", e.image)}
        touching = [p for p in pieces if p[0] & keys]
        pieces = [p for p in pieces if not p[0] & keys]
        pieces.append((keys.union(*(p[0] for p in touching)), sum((p[1] for p in touching), [e])))
    best: dict[tuple, bool] = {}
    for e in examples:
        best[e.image, e.caption] = best.get((e.image, e.caption), False) or e.eligible
    eligible = sum(any(best[e.image, e.caption] for e in found) for _, found in pieces)
    assert len(tested) == min(test, eligible)
    assert len(held) == min(held_out, eligible - len(tested))
    # neither the order of the examples nor copies of them matter
    shuffled = [*examples, *examples[:3]]
    rng.shuffle(shuffled)
    again = divided(shuffled, seed, test, held_out)
    for split in SPLITS:
        assert [e[2:] for e in again[split]] == [e[2:] for e in splits[split]]


def test_ineligible_pairs_train_only_without_their_group():
    examples = [
        Example(b"%d" % n, f"c{n}", f"{n % 2}", f"g{n // 2}", eligible=n % 2 == 0) for n in range(40)
    ]  # each group of two has one that may not be tested
    splits = divided(examples, 0, 5, 5)
    assert [len(splits[s]) for s in SPLITS] == [20, 5, 5]
    assert sum(not e.eligible for e in splits["train"]) == 10
    nothing = divided([e._replace(eligible=False) for e in examples], 0, 5, 5)
    assert [len(nothing[s]) for s in SPLITS] == [40, 0, 0]


def test_more_tested_pairs_keep_those_that_were_and_seeds_differ():
    examples = [Example(b"%d" % n, f"c{n}", str(n), f"g{n}") for n in range(60)]
    few, more = (divided(examples, 0, n, 0)["test"] for n in (10, 20))
    assert more[:10] == few
    assert divided(examples, 0, 10, 9)["test"] == few
    assert divided(examples, 1, 10, 0)["test"] != few
    distinct = [e._replace(caption=f"c{n % 30}") for n, e in enumerate(examples)]
    assert len({e.caption for e in divided(distinct, 0, 25, 0)["test"]}) == 25


# -------------------------------------------------------------------------------------- determinism


def test_the_store_does_not_depend_on_the_order_of_the_source(tmp_path):
    first = build(images(grouped(tmp_path / "p"), held_out=2, test=3), tmp_path / "first")
    path = tmp_path / "p" / "captions.jsonl"
    lines = path.read_text().splitlines()
    random.Random(1).shuffle(lines)
    path.write_text("\n".join(lines) + "\n")
    second = build(images(grouped_as_it_is(tmp_path / "p"), held_out=2, test=3), tmp_path / "second")
    assert second.fingerprint == first.fingerprint
    other = build(images(grouped_as_it_is(tmp_path / "p"), held_out=2, test=3), tmp_path / "third", seed=1)
    assert other.fingerprint != first.fingerprint


def grouped_as_it_is(place: Path) -> ImageSource:
    return ImageSource(folder=str(place), captions="captions.jsonl", group="g")


def test_two_builds_are_equal_to_the_byte(tmp_path):
    recipe = images(many(tmp_path / "p", 30), held_out=4, test=5)
    assert contents(build(recipe, tmp_path / "a").folder) == contents(build(recipe, tmp_path / "b").folder)
    assert [p.name for p in tmp_path.iterdir() if "building" in p.name] == []


@pytest.mark.parametrize("what", ["image", "caption", "name", "group", "shards", "split"])
def test_the_fingerprint_is_of_everything(tmp_path, what):
    def made(place: str, **changed):
        row = {"image": "a.png", "caption": "one", "g": "x"}
        third = {"image": changed.get("name", "c.png"), "caption": changed.get("caption", "three")}
        third["g"] = changed.get("group", "z")
        pictures = {"a.png": picture(1), "b.png": picture(2), third["image"]: picture(changed.get("image", 3))}
        source = folder(tmp_path / place, [row, {**row, "image": "b.png", "g": "y"}, third], pictures, group="g")
        keys = {"shards": {"shard_rows": 2}, "split": {"test": 1}}.get(changed.get("what", ""), {})
        return build(images(source, **keys), tmp_path / f"{place}-store").fingerprint

    change = {"image": 4, "caption": "four", "name": "d.png", "group": "w"}
    same, other = made("same"), made("again")
    assert same == other
    assert made("changed", **({what: change[what]} if what in change else {"what": what})) != same


def _build_at_once(recipe: str, place: str, out) -> None:
    out.put(build(Images.model_validate_json(recipe), Path(place)).fingerprint)


def test_two_processes_build_one_store(tmp_path):
    recipe = images(many(tmp_path / "p", 60), held_out=4, test=5)
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    arguments = (recipe.model_dump_json(), str(tmp_path / "images"), out)
    workers = [context.Process(target=_build_at_once, args=arguments) for _ in range(2)]
    for w in workers:
        w.start()
    found = [out.get(timeout=120) for _ in workers]
    for w in workers:
        w.join()
    assert len(set(found)) == 1
    assert contents(build(recipe, tmp_path / "alone").folder) == contents(tmp_path / "images")


def test_a_killed_build_starts_again(tmp_path):
    tar(tmp_path / "a.tar", [(f"{i}.{e}", d) for i in range(2000) for e, d in (("png", picture(i)), ("txt", b"x"))])
    recipe = images(ImageSource(webdataset=str(tmp_path / "a.tar")), test=5)
    unfinished = kill_build(build_pair_store, recipe, tmp_path / "images")
    store = build(recipe, tmp_path / "images")
    store.verify()
    assert sizes(store) == (1995, 0, 5)
    assert not unfinished.exists()


# ----------------------------------------------------------------------------------------- refusals


def test_the_same_recipe_opens_another_is_refused(tmp_path):
    source = many(tmp_path / "p", 12)
    store = build(images(source, test=2), tmp_path / "images")
    before = contents(store.folder)
    assert build(images(source, test=2), tmp_path / "images").fingerprint == store.fingerprint
    with pytest.raises(UserError, match=r"images\.test \(2 there, 3 asked\); set run_dir=\.\.\. \(or"):
        build(images(source, test=3), tmp_path / "images")
    with pytest.raises(UserError, match=r"seed \(0 there, 1 asked\)"):
        build(images(source, test=2), tmp_path / "images", seed=1)
    assert contents(store.folder) == before
    with pytest.raises(UserError, match="no complete pair store here"):
        PairStore.open(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match="not a pair store"):
        build(images(source), tmp_path / "mine")


def test_changed_source_files_are_refused(tmp_path):
    source = images(many(tmp_path / "p", 6))
    build(source, tmp_path / "images")
    image, captions = tmp_path / "p" / "2.png", tmp_path / "p" / "captions.jsonl"
    was = image.read_bytes()
    os.utime(image, ns=(0, 0))  # the time alone is no change
    build(source, tmp_path / "images")
    image.write_bytes(picture(99))
    with pytest.raises(UserError, match=r"2\.png: has changed .* after .*images was built from it; restore the file"):
        build(source, tmp_path / "images")
    image.write_bytes(was)
    with captions.open("a") as file:
        file.write(json.dumps({"image": "2.png", "caption": "more"}) + "\n")
    with pytest.raises(UserError, match=r"captions\.jsonl: has changed"):
        build(source, tmp_path / "images")
    shutil.rmtree(tmp_path / "p")  # gone is no change: the store holds it all
    build(source, tmp_path / "images")


def test_an_added_tar_is_a_change(tmp_path):
    members = [(f"{i}.{e}", d) for i in range(3) for e, d in (("png", picture(i)), ("txt", b"x"))]
    tar(tmp_path / "a.tar", members)
    source = images(ImageSource(webdataset=str(tmp_path / "*.tar")))
    build(source, tmp_path / "images")
    tar(tmp_path / "b.tar", members)
    with pytest.raises(UserError, match=r"b\.tar: was added"):
        build(source, tmp_path / "images")


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "rewritten", "manifest"])
def test_damaged_stores_are_found(tmp_path, damage):
    store = build(images(many(tmp_path / "p", 30)), tmp_path / "images")
    first, second = store.manifest["shards"][:2]
    path = store.folder / first["file"]
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        manifest = json.loads((store.folder / "manifest.json").read_text())
        if damage == "rewritten":  # another, whole shard, and its sha256 in the manifest: only the fingerprint tells
            shutil.copy(store.folder / second["file"], path)
            manifest["shards"][0] |= {"sha256": second["sha256"], "bytes": second["bytes"]}
        else:
            manifest["splits"] = {"train": 30, "held_out": 0}
        (store.folder / "manifest.json").write_text(json.dumps(files.sealed(manifest)))
    message = {
        "missing": f"{path.name}: shard is missing; .* build the pair store again",
        "cut": f"{path.name}: shard has .* bytes instead of",
        "flipped": f"{path.name}: sha256 is",
        "rewritten": "fingerprint is",
        "manifest": "splits are train, held_out; expected train, held_out, test",
    }[damage]
    with pytest.raises(UserError, match=message):
        PairStore.open(store.folder).verify()


# ------------------------------------------------------------------------------------------ OpenMoji


@pytest.mark.skipif(not openmoji_is_cached(), reason="32 MB to download: read where it is cached")
def test_a_store_of_openmoji(tmp_path):
    recipe = images(ImageSource(asset="openmoji", limit=60), test=5, held_out=5)
    store = build(recipe, tmp_path / "images")
    assert sizes(store)[1:] == (5, 5)
    assert len({p.caption for split in SPLITS for p in rows(store, split)}) == sum(sizes(store))
    assert store.fingerprint == build(recipe, tmp_path / "again").fingerprint
    for pair in rows(store, "train")[:3]:
        assert pair.image.startswith(b"\x89PNG")
