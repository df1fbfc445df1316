"""Which labelled pairs train and which are held out, and the distinct texts of each side.

    sources ─► distinct pairs ─► groups that share a query or a passage ─► held out by hash | training

A pure function of the sources' content and the seed, independent of the order of rows. All pairs are in memory at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jasper_jax.data.augment import keyed_hash
from jasper_jax.data.pair_sources import LabelledPair, read_pairs
from jasper_jax.data.pair_table import PairTable
from jasper_jax.data.shards import HELD_OUT, SPLITS, TRAIN
from jasper_jax.data.source_files import label
from jasper_jax.data.text import Text, digest
from jasper_jax.recipe.config_sources import PairSource, Texts
from jasper_jax.runtime.errors import UserError


class Pair(NamedTuple):
    """A pair by the numbers of its texts."""

    query: int
    passage: int
    negatives: tuple[int, ...]
    score: float
    source: int


class Labels:
    """The pairs of a recipe. ``texts``: by split, the distinct texts, which the store appends to its own rows;
    ``counts[source, what]``: what happened to the pairs."""

    def __init__(self, texts: Texts, seed: int):
        self.texts: dict[str, list[Text]] = {split: [] for split in SPLITS}
        self.counts: Counter[tuple[str, str]] = Counter()
        self._max_chars = texts.max_chars
        self._all: list[Text] = []
        self._numbers: dict[bytes, int] = {}
        self._sources = [f"pairs {label(source)}" for source in texts.pairs]
        pairs = self._read(texts.pairs, seed)
        held = _held_out(pairs, [text.text for text in self._all], seed, texts.held_out_pairs)
        self._split(pairs, held)
        if texts.pairs and not self._pairs[TRAIN]:
            raise UserError(
                f"texts.pairs: {len(pairs):,} pairs leave none for training after {len(self._pairs[HELD_OUT]):,} held"
                f" out (texts.held_out_pairs: {texts.held_out_pairs}); lower held_out_pairs or add pairs"
            )
        self.held_out_pairs = len(self._pairs[HELD_OUT])
        digests = {split: {digest(text.text, text.kind) for text in self.texts[split]} for split in SPLITS}
        self.digests = frozenset(digests[TRAIN] | digests[HELD_OUT])
        """Of every text, by kind."""
        held_out = {text.text for text in self.texts[HELD_OUT]}
        self._held = {digest(text, "passage") for text in held_out}
        self._train = digests[TRAIN]

    def holds_out(self, as_passage: bytes) -> bool:
        """Whether a held-out pair has the text with this digest as a passage, as query or passage."""
        return as_passage in self._held

    def trains_on(self, digest: bytes) -> bool:
        """Whether a training pair has the text with this digest."""
        return digest in self._train

    def tables(self, first: dict[str, int]) -> dict[str, PairTable]:
        """The tables by split, where the texts of a split are the store's rows from ``first[split]`` on."""
        return {split: self._table(self._pairs[split], self._rows[split], first[split]) for split in SPLITS}

    def _read(self, sources: Sequence[PairSource], seed: int) -> list[Pair]:
        pairs: list[Pair] = []
        seen: set[tuple[int, int]] = set()
        for number, source in enumerate(sources):
            for pair in _limited(read_pairs(source), source.limit, seed):
                self._count(number, "pairs")
                if not pair.score:
                    self._count(number, "with a score of 0")
                    continue
                query, passage = self._add(pair.query, "query", number), self._add(pair.passage, "passage", number)
                if (query, passage) in seen:
                    self._count(number, "duplicates")
                    continue
                seen.add((query, passage))
                given = dict.fromkeys(self._add(text, "passage", number) for text in pair.negatives)
                pairs.append(Pair(query, passage, tuple(given), pair.score, number))
        answers: dict[int, set[int]] = {}
        for pair in pairs:
            answers.setdefault(pair.query, set()).add(pair.passage)
        kept = []
        for pair in pairs:
            negatives = tuple(text for text in pair.negatives if text not in answers[pair.query])
            self._count(pair.source, "negatives that are an answer", len(pair.negatives) - len(negatives))
            kept.append(pair._replace(negatives=negatives))
        return kept

    def _add(self, text: str, kind: str, source: int) -> int:
        """The number of a text."""
        text = text.strip()
        if len(text) > self._max_chars:
            self._count(source, "texts cut")
            text = text[: self._max_chars].rstrip()
        key = digest(text, kind)
        if key not in self._numbers:
            self._numbers[key] = len(self._all)
            self._all.append(Text(text, kind, self._sources[source]))
        return self._numbers[key]

    def _split(self, pairs: Sequence[Pair], held: set[int]) -> None:
        """Divide the pairs, and the texts that each side needs. A passage that is only ever a negative goes to the side
        of the first training pair that has it."""
        self._pairs: dict[str, list[Pair]] = {split: [] for split in SPLITS}
        self._rows: dict[str, dict[int, int]] = {split: {} for split in SPLITS}
        for pair in pairs:
            self._pairs[HELD_OUT if pair.query in held else TRAIN].append(pair)
        side: dict[int, str] = {}
        for split in SPLITS:
            for pair in self._pairs[split]:
                side[pair.query] = side[pair.passage] = split
        for split in SPLITS:
            for pair in self._pairs[split]:
                for text in pair.negatives:
                    side.setdefault(text, split)
        for split in SPLITS:
            for number, pair in enumerate(self._pairs[split]):
                negatives = tuple(text for text in pair.negatives if side[text] == split)
                self._count(pair.source, "negatives on the other side", len(pair.negatives) - len(negatives))
                self._pairs[split][number] = pair._replace(negatives=negatives)
                for text in (pair.query, pair.passage, *negatives):
                    self._rows[split].setdefault(text, len(self._rows[split]))
                self._count(pair.source, split)
            self.texts[split] = [self._all[text] for text in self._rows[split]]

    def _table(self, pairs: Sequence[Pair], rows: dict[int, int], first: int) -> PairTable:
        return PairTable.of(
            [first + rows[pair.query] for pair in pairs],
            [first + rows[pair.passage] for pair in pairs],
            [[first + rows[text] for text in pair.negatives] for pair in pairs],
            [pair.score for pair in pairs],
            [pair.source for pair in pairs],
        )

    def _count(self, source: int, what: str, n: int = 1) -> None:
        self.counts[self._sources[source], what] += n


def _limited(pairs: Iterator[LabelledPair], limit: int | None, seed: int) -> Iterator[LabelledPair]:
    """The ``limit`` pairs with the smallest hashes, in their order; None: all."""
    if limit is None:
        yield from pairs
        return
    every = list(pairs)
    ranks = [keyed_hash(f"{pair.query}\n{pair.passage}", seed, "limit") for pair in every]
    chosen = sorted(range(len(every)), key=lambda i: (ranks[i], i))[:limit]
    yield from (every[i] for i in sorted(chosen))


def _held_out(pairs: Sequence[Pair], texts: Sequence[str], seed: int, wanted: int) -> set[int]:
    """The texts of the held-out pairs: of complete groups that share a query or a passage, at most ``wanted`` pairs.

    Groups come by the hash of their first text in alphabetical order; one that is too large for the rest is skipped.
    """
    parent = list(range(len(texts)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for pair in pairs:
        parent[root(pair.query)] = root(pair.passage)
    groups: dict[int, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(root(pair.query), []).append(pair)

    def rank(group: Sequence[Pair]) -> tuple[int, str]:
        first = min(min(texts[pair.query], texts[pair.passage]) for pair in group)
        return keyed_hash(first, seed, "held out pairs"), first

    held: set[int] = set()
    left = wanted
    for group in sorted(groups.values(), key=rank):
        if len(group) <= left:
            left -= len(group)
            held.update(text for pair in group for text in (pair.query, pair.passage))
    return held
