"""What becomes of one document: its texts, divided, shuffled and cut, with the hashes by which the store chooses.

A pure function of the document, the seed and a few settings, so any process may do it, in any order. Between processes
documents and results are plain tuples, which are pickled in a third of the time of named ones.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jasper_jax.assets.corpora import Document
from jasper_jax.data.augment import augment_document, keyed_hash
from jasper_jax.data.near_duplicates import Bands
from jasper_jax.data.text import digest
from jasper_jax.recipe.config_sources import Augment, Texts

DOCUMENTS, CHARACTERS = 256, 1 << 20
"""A batch ends with the document that reaches one of these."""


Piece = tuple[str, bytes, bytes, tuple[bytes, ...]]
"""A text of a document, its digest, what its digest would be if it were a passage, and its bands."""


class Prepared(NamedTuple):
    """A document's texts."""

    kind: str
    source: str
    digest: bytes
    """Of the whole document; empty for a document without a text."""
    as_passage: bytes
    """What its digest would be if it were a passage."""
    rank: int
    """Those with the smallest are held out."""
    counts: tuple[tuple[str, int], ...]
    """What was done to it, for people."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Preparation:
    """Documents, as tuples -> the fields of :class:`Prepared`. Can be pickled."""

    augment: Augment
    max_chars: int
    seed: int
    bands: Bands | None
    """None: equal texts alone are duplicates."""

    @classmethod
    def of(cls, texts: Texts, seed: int) -> Preparation:
        bands = None if texts.near_duplicates is None else Bands.of(texts.near_duplicates)
        return cls(texts.augment, texts.max_chars, seed, bands)

    def __call__(self, documents: Sequence[tuple[str, str, str]]) -> list[tuple[Any, ...]]:
        return [self._prepare(*document) for document in documents]

    def _prepare(self, text: str, kind: str, source: str) -> tuple[Any, ...]:
        text = text.strip()
        if not text:
            return kind, source, b"", b"", 0, (("empty", 1),), ()
        own, as_passage = _digests(text, kind)
        made = augment_document(text, kind, self.augment, self.seed)
        counts: list[tuple[str, int]] = []
        if made.split:
            counts += ("documents divided", 1), ("pieces", len(made.texts))
        if made.shuffled:
            counts.append(("words shuffled", made.shuffled))
        if cut := sum(len(piece) > self.max_chars for piece in made.texts):
            counts.append(("cut", cut))
        pieces = tuple(self._piece(self._cut(piece), kind) for piece in made.texts)
        rank = keyed_hash(text, self.seed, "held out")
        return kind, source, own, as_passage, rank, tuple(counts), pieces

    def _cut(self, text: str) -> str:
        return text if len(text) <= self.max_chars else text[: self.max_chars].rstrip()

    def _piece(self, text: str, kind: str) -> Piece:
        return text, *_digests(text, kind), () if self.bands is None else self.bands(text, kind)


@functools.lru_cache(maxsize=1)  # a document is often one text
def _digests(text: str, kind: str) -> tuple[bytes, bytes]:
    own = digest(text, kind)
    return own, own if kind == "passage" else digest(text, "passage")


def batches(documents: Iterable[Document]) -> Iterator[list[tuple[str, str, str]]]:
    """The documents in lists; before what their iterator raises, the list of those that came first."""
    batch: list[tuple[str, str, str]] = []
    characters = 0
    try:
        for document in documents:
            batch.append((document.text, document.kind, document.source))
            characters += len(document.text)
            if len(batch) == DOCUMENTS or characters >= CHARACTERS:
                yield batch
                batch, characters = [], 0
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
