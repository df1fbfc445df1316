"""The paper's augmentation (arXiv 2412.19048, section 3): cuts long texts into short ones and shuffles words.

A keyed hash of the text alone decides whether and how it is changed, so the result does not depend on the rest of the
corpus or on the number of processes.
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  (compiled)

from jasper_jax.recipe.config_sources import Augment


@dataclass(frozen=True)
class Augmented:
    """The texts made from one document."""

    texts: list[str]
    split: bool
    """Whether it was divided into at least two."""
    shuffled: int
    """How many of ``texts`` had their words shuffled."""


def normalised(text: str) -> str:
    """``text`` with every run of white space replaced by one space, and none at its ends."""
    if text.isprintable() and "  " not in text and text == text.strip():  # of white space only a space is printable
        return text
    return " ".join(text.split())


@functools.lru_cache(maxsize=16)  # a text is hashed for several purposes, one after another
def normalised_bytes(text: str) -> bytes:
    """:func:`normalised` text in UTF-8."""
    return normalised(text).encode()


@functools.cache
def _key(seed: int, purpose: str) -> bytes:
    return f"{seed}/{purpose}".encode()


def keyed_hash(text: str, seed: int, purpose: str) -> int:
    """A 64-bit hash, uniform over texts and independent between seeds and purposes."""
    key = _key(seed, purpose)
    return int.from_bytes(hashlib.blake2b(normalised_bytes(text), digest_size=8, key=key).digest())


def _chosen(text: str, seed: int, purpose: str, share: float) -> bool:
    return share > 0 and keyed_hash(text, seed, purpose) < share * 2**64


def _sentences(text: str, language: str) -> list[str]:
    """The sentences of ``text`` in order, each with the white space that follows it."""
    sentences: list[str] = []
    for sentence in segment(language, text):
        if sentences and not sentence.strip():
            sentences[-1] += sentence
        elif sentence:
            sentences.append(sentence)
    return sentences


def divide(text: str, augment: Augment, seed: int) -> list[str]:
    """Consecutive pieces of ``text``, each of ``min_sentences`` to ``max_sentences``; the last may be shorter.

    The number of sentences of each piece is drawn uniformly. Only white space is lost.
    """
    sentences = _sentences(text, augment.language)
    rng = random.Random(keyed_hash(text, seed, "lengths"))
    pieces, at = [], 0
    while at < len(sentences):
        span = augment.max_sentences - augment.min_sentences + 1
        size = augment.min_sentences + int(rng.random() * span)
        pieces.append("".join(sentences[at : at + size]).strip())
        at += size
    return [piece for piece in pieces if piece]


def shuffle_words(text: str, seed: int) -> str:
    """The words of ``text`` in another order; ``text`` itself if there is no other order."""
    words = text.split()
    rng = random.Random(keyed_hash(text, seed, "order"))
    shuffled = sorted(words, key=lambda _: rng.random())
    if shuffled == words:
        shuffled = words[1:] + words[:1]
    return " ".join(shuffled) if shuffled != words else text


def augment_document(text: str, kind: str, augment: Augment, seed: int) -> Augmented:
    """Divide ``split_share`` of the passages; then shuffle the words of ``shuffle_share`` of all texts."""
    texts = [text]
    if kind == "passage" and _chosen(text, seed, "divide", augment.split_share):
        texts = divide(text, augment, seed)
    shuffled = 0
    for i, piece in enumerate(texts):
        if _chosen(piece, seed, "shuffle", augment.shuffle_share):
            texts[i] = shuffle_words(piece, seed)
            shuffled += texts[i] != piece
    return Augmented(texts, split=len(texts) > 1, shuffled=shuffled)
