"""Dividing documents and shuffling words: invariants, shares, and independence of position."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.data.augment import (
    _sentences,
    augment_document,
    divide,
    keyed_hash,
    normalised,
    shuffle_words,
)
from jasper_jax.recipe.config_sources import Augment

ALWAYS = Augment(split_share=1.0, shuffle_share=0.0)
WORDS = st.lists(
    st.sampled_from(["The", "a", "dog.", "ran!", "Dr.", "3.5", "\n\n", "(yes)", "“Why?”", "не", "знаю。", "ok…"]),
    max_size=60,
)
ANY = st.one_of(WORDS.map(" ".join), st.text(max_size=300))


def no_space(text: str) -> str:
    return "".join(text.split())


@given(ANY, st.integers(1, 4), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_document_in_order(text, low, more, seed):
    augment = Augment(split_share=1.0, min_sentences=low, max_sentences=low + more)
    pieces = divide(text, augment, seed)
    assert no_space("".join(pieces)) == no_space(text)
    assert all(p == p.strip() and p for p in pieces)
    assert pieces == divide(text, augment, seed)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 5), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_every_piece_but_the_last_has_min_to_max_sentences(count, low, more, seed):
    text = " ".join(f"This is sentence number {i} here." for i in range(count))
    augment = Augment(split_share=1.0, min_sentences=low, max_sentences=low + more)
    sizes = [piece.count(".") for piece in divide(text, augment, seed)]
    assert sum(sizes) == count
    assert all(low <= size <= low + more for size in sizes[:-1])
    assert 1 <= sizes[-1] <= low + more


def test_the_sizes_of_pieces_are_uniform():
    text = " ".join(f"This is sentence number {i} here." for i in range(4000))
    sizes = [piece.count(".") for piece in divide(text, ALWAYS, 1)][:-1]
    shares = [sizes.count(n) / len(sizes) for n in range(1, 11)]
    assert len(sizes) > 600
    assert all(0.06 < s < 0.14 for s in shares), shares


def test_sentences_are_sentences():
    text = "Dr. Smith paid $3.50 for it. He left!\n\nThen e.g. nothing. “Why?” she said."
    assert [s.strip() for s in _sentences(text, "en")] == [
        "Dr. Smith paid $3.50 for it.",
        "He left!",
        "Then e.g. nothing.",
        "“Why?” she said.",
    ]


@given(ANY, st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_shuffled_words_are_the_same_words(text, seed):
    mixed = shuffle_words(text, seed)
    assert sorted(mixed.split()) == sorted(text.split())
    assert mixed == shuffle_words(text, seed)
    assert (normalised(mixed) != normalised(text)) == (len(set(text.split())) > 1)


def test_shares_are_met_and_differ_between_seeds():
    documents = [f"Sentence one of {i}. Sentence two of {i}. And three. Four." for i in range(4000)]
    augment = Augment(split_share=0.3, max_sentences=2, shuffle_share=0.05)
    made = [augment_document(d, "passage", augment, 0) for d in documents]
    texts = sum(len(m.texts) for m in made)
    assert sum(m.split for m in made) / 4000 == pytest.approx(0.3, abs=0.03)
    assert sum(m.shuffled for m in made) / texts == pytest.approx(0.05, abs=0.015)
    other = [augment_document(d, "passage", augment, 1).split for d in documents]
    assert 0.35 < sum(a.split != b for a, b in zip(made, other)) / 4000 < 0.5  # 2 · 0.3 · 0.7


def test_queries_and_zero_shares_are_left_alone():
    text = "One sentence. Another sentence. A third sentence."
    assert augment_document(text, "query", ALWAYS, 0).texts == [text]
    assert len(augment_document(text, "passage", Augment(split_share=1, max_sentences=1), 0).texts) == 3
    made = augment_document(text, "passage", Augment(split_share=0, shuffle_share=0), 0)
    assert (made.texts, made.split, made.shuffled) == ([text], False, 0)
    mixed = augment_document("a b c d e f", "query", Augment(shuffle_share=1.0), 0)
    assert mixed.shuffled == 1
    assert sorted(mixed.texts[0].split()) == list("abcdef")
    assert augment_document("alone", "query", Augment(shuffle_share=1.0), 0).shuffled == 0


def test_the_decision_depends_on_the_text_alone():
    documents = [f"First of {i}. Second of {i}. Third of {i}." for i in range(50)]
    augment = Augment(split_share=0.5, max_sentences=1, shuffle_share=0.3)
    straight = {d: augment_document(d, "passage", augment, 5) for d in documents}
    random.Random(0).shuffle(documents)
    assert {d: augment_document(d, "passage", augment, 5) for d in documents} == straight


def test_white_space_of_every_kind_is_normalised():
    spaces = [character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()]
    assert len(spaces) > 20
    for space in spaces:
        assert normalised(f"a{space}b") == normalised(f"a {space}b") == "a b"
        assert normalised(f"{space}a") == normalised(f"a{space}") == "a"
    assert normalised("  ") == normalised("") == ""


def test_the_keyed_hash_ignores_white_space_and_is_pinned():
    assert keyed_hash("a  b\n", 0, "x") == keyed_hash(" a b", 0, "x")
    assert len({keyed_hash("a", s, p) for s in range(3) for p in "xyz"}) == 9
    # a change here changes every store that is built from an old recipe
    assert keyed_hash("a b", 7, "divide") == int.from_bytes(_blake("7/divide", "a b"))


def _blake(key: str, text: str) -> bytes:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=8, key=key.encode()).digest()
