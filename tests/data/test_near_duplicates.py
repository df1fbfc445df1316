"""Texts that are almost the same: which are told apart, which are left out, and what stays far from training."""

from __future__ import annotations

import random
import string
import sys

import pytest

from jasper_jax.data.near_duplicates import Bands
from jasper_jax.data.texts import build_text_store
from jasper_jax.recipe.config_sources import PairSource, TextSource
from jasper_jax.runtime.errors import UserError
from tests.data.store_helpers import build_by_two_processes, contents, lines, recipe


def build(texts, folder, seed=0):
    return build_text_store(texts, folder, seed, progress=False)


def sentence(rng: random.Random, words: int = 30) -> str:
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(words))


def changed(text: str, words: int) -> str:
    """The text with other last words."""
    return " ".join([*text.split()[:-words], *("other" for _ in range(words))])


def shingles(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(len(text) - 4)}


def jaccard(one: str, two: str) -> float:
    return len(shingles(one) & shingles(two)) / len(shingles(one) | shingles(two))


@pytest.mark.parametrize(("words", "least", "most"), [(1, 0.97, 1), (8, 0, 0.2), (20, 0, 0.02)])
def test_the_threshold_divides_similar_texts_from_others(words, least, most):
    """Of 300 pairs of a Jaccard similarity of 0.94, 0.7 and 0.3 at a threshold of 0.8."""
    rng, bands = random.Random(0), Bands.of(0.8)
    pairs = [(text, changed(text, words)) for text in (sentence(rng) for _ in range(300))]
    near = [bool(set(bands(one, "query")) & set(bands(two, "query"))) for one, two in pairs]
    expected = {1: 0.94, 8: 0.7, 20: 0.3}[words]
    assert sum(jaccard(*pair) for pair in pairs) / 300 == pytest.approx(expected, abs=0.05)
    assert least <= sum(near) / 300 <= most


def test_white_space_and_case_do_not_count_and_the_kind_does():
    bands = Bands.of(0.8)
    assert bands("How do  tides work?", "query") == bands(" how do tides\nwork?", "query")
    assert not set(bands("How do tides work?", "query")) & set(bands("How do tides work?", "passage"))
    assert len(bands("", "query")) == len(bands("abc", "query")) == bands.number


def corpus(rng: random.Random, number: int = 200) -> list[str]:
    """Texts, a quarter of them twice with other last words."""
    texts = [sentence(rng) for _ in range(number)]
    return texts + [changed(text, 1) for text in texts[: number // 4]]


def test_they_are_left_out_counted_and_shown(tmp_path):
    source = lines(tmp_path / "a.txt", corpus(random.Random(1)))
    assert build(recipe(source, held_out=20), tmp_path / "all").size("train") == 230
    store = build(recipe(source, held_out=20, near_duplicates=0.8), tmp_path / "texts")
    counts = store.manifest["counts"][f"text:{source.text}"]["passage"]
    assert 45 <= counts["near-duplicates"] <= 50
    assert counts["train"] + counts["held_out"] + counts["near-duplicates"] == 250
    shown = [line for line in store.summary() if line.startswith("a near-duplicate: ")]
    assert len(shown) == 3
    for line in shown:
        one, two = line.removeprefix("a near-duplicate: ").split(", of ")
        assert one[:30] == two[:30]
        assert one != two, "what is shown is where they differ"


def test_the_store_does_not_depend_on_the_number_of_processes(tmp_path):
    source = lines(tmp_path / "a.txt", corpus(random.Random(2)))
    texts = recipe(source, held_out=20, near_duplicates=0.8)
    one, two = build(texts, tmp_path / "one"), build_by_two_processes(texts, tmp_path / "two", 0)
    assert contents(one.folder) == contents(two.folder)


def test_what_is_held_out_is_far_from_training_in_either_kind(tmp_path):
    """Every passage is there as a query with another last word."""
    rng = random.Random(3)
    texts = [sentence(rng) for _ in range(200)]
    passages = lines(tmp_path / "a.txt", texts)
    queries = TextSource(text=lines(tmp_path / "b.txt", [changed(text, 1) for text in texts]).text, kind="query")
    store = build(recipe(passages, queries, held_out=40, near_duplicates=0.8), tmp_path / "texts")
    held, train = ([row.text for row in store.read(split, range(store.size(split)))] for split in ("held_out", "train"))
    assert len(train) > 300
    near = sum(any(jaccard(one, two) > 0.9 for two in train) for one in held)
    assert near <= 0.05 * len(texts)


def test_nothing_near_a_held_out_pair_trains(tmp_path):
    rng = random.Random(4)
    answers = [sentence(rng) for _ in range(60)]
    table = tmp_path / "labels.csv"
    table.write_text("query,passage\n" + "".join(f"{sentence(rng, 8)},{answer}\n" for answer in answers))
    source = lines(tmp_path / "a.txt", [changed(answer, 1) for answer in answers] + [sentence(rng) for _ in range(50)])
    pairs = {"pairs": [PairSource(csv=str(table))], "held_out_pairs": 20}
    store = build(recipe(source, held_out=5, near_duplicates=0.8, **pairs), tmp_path / "texts")
    counts = store.manifest["counts"][f"text:{source.text}"]["passage"]
    assert counts["near-duplicates"] >= 55
    held = {row.text for row in store.read("held_out", range(store.size("held_out")))}
    train = [row.text for row in store.read("train", range(store.size("train")))]
    assert sum(any(jaccard(one, two) > 0.9 for two in train) for one in held) <= 1


def test_without_the_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    source = lines(tmp_path / "a.txt", corpus(random.Random(5)))
    with pytest.raises(UserError, match=r"texts.near_duplicates: needs datasketch: pip install 'jasper-jax\[dedup\]'"):
        build(recipe(source, near_duplicates=0.8), tmp_path / "texts")
    assert not (tmp_path / "texts").exists()
