"""Which texts of the sources enter the store: counts documents, drops duplicates, holds out documents.

The texts of labelled pairs (``labels``) are in the store already: equal ones are duplicates, and a document of a
held-out pair never enters training.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from jasper_jax.data.labels import Labels
from jasper_jax.data.near_duplicates import Bands
from jasper_jax.data.prepared import Preparation, Prepared, batches
from jasper_jax.data.seen import Seen
from jasper_jax.data.shards import TRAIN
from jasper_jax.data.sources import Mix
from jasper_jax.data.text import Text, digest
from jasper_jax.recipe.config_sources import Texts
from jasper_jax.runtime.workers import Workers

_LEFT_OUT = "left out (of a held-out pair)"
_SHOWN, _REMEMBERED = 3, 1 << 16
"""Near-duplicates shown beside what they are near, and hashes of texts that are kept for it."""


class HeldOut:
    """The documents with the smallest keyed hashes, as few as have ``size`` texts: a uniform sample.

    The choice does not depend on their order. A document displaced by a smaller hash goes to training, with all texts.
    """

    def __init__(self, size: int):
        self.size, self.texts, self._added = size, 0, 0
        self._heap: list[tuple[int, int, list[Text]]] = []

    def push(self, rank: int, texts: list[Text]) -> Iterator[Text]:
        """Add a document; the texts that it displaces to training."""
        self._added += 1
        if self._heap and self.texts >= self.size and -rank <= self._heap[0][0]:
            yield from texts  # it would be the first to be displaced
            return
        heapq.heappush(self._heap, (-rank, -self._added, texts))
        self.texts += len(texts)
        while self._heap and self.texts - len(self._heap[0][2]) >= self.size:
            released = heapq.heappop(self._heap)[2]
            self.texts -= len(released)
            yield from released

    def documents(self) -> list[list[Text]]:
        return [texts for _, _, texts in sorted(self._heap, reverse=True)]


class Selection:
    """One pass over the documents of a recipe. ``counts[source, kind]`` says what happened to them; ``near_duplicates``
    has some that were left out, each with a text that it is near.

    ``seen``: an empty set, of the texts of each kind in the store or held out. ``workers`` read and prepare the
    documents; everything that depends on other documents is decided here, in their order.
    """

    def __init__(self, texts: Texts, seed: int, labels: Labels, seen: Seen, workers: Workers):
        self.recipe, self.labels, self.seen = texts, labels, seen
        self._mix = Mix(texts, seed, workers)
        preparation = Preparation.of(texts, seed)
        self._bands = preparation.bands
        self._prepared = workers.map(preparation, batches(self._mix))
        self._taken, self._ended = 0, False
        self.counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.held_out = HeldOut(texts.held_out)
        self.near_duplicates: list[tuple[str, str]] = []
        self._recent: dict[bytes, str] = {}
        own = tuple(labels.digests)
        seen.expect(own)
        for text in own:
            seen.add(text)
        if self._bands is not None:
            self._add_labelled(self._bands)

    def _add_labelled(self, bands: Bands) -> None:
        """What is near a text of labelled pairs stays out; near one of those held out, whatever its kind."""
        for split, texts in self.labels.texts.items():
            for text in texts:
                kinds = (text.kind,) if split == TRAIN else ("query", "passage")
                found = [band for kind in kinds for band in bands(text.text, kind)]
                self.seen.expect(found)
                self._add(text.text, found)

    @property
    def exhausted(self) -> dict[str, int]:
        """The sources that had run out when the last document was taken, with the number of documents they gave."""
        return self._mix.exhausted(None if self._ended else self._taken)

    def _texts_of(self, document: Prepared) -> list[Text]:
        kind, source = document.kind, document.source
        counts = self.counts[source, kind]
        counts["documents"] += 1
        if self.labels.holds_out(document.as_passage):
            counts[_LEFT_OUT] += 1
            return []
        for what, n in document.counts:
            counts[what] += n
        out = []
        for text, own, as_passage, bands in document.pieces:
            if self.labels.holds_out(as_passage):
                counts[_LEFT_OUT] += 1
            elif self.seen.has(own):
                counts["duplicates"] += 1
            elif shared := [band for band in bands if self.seen.has(band)]:
                counts["near-duplicates"] += 1
                self._show(text, shared)
            else:
                self._add(text, (own, *bands))
                out.append(Text(text, kind, source))
        return out

    def _add(self, text: str, digests: Sequence[bytes]) -> None:
        for one in digests:
            self.seen.add(one)
        if self._bands is not None and len(self._recent) < _REMEMBERED:
            self._recent.update(dict.fromkeys(digests, text))

    def _show(self, text: str, shared: list[bytes]) -> None:
        if len(self.near_duplicates) < _SHOWN and (kept := self._recent.get(shared[0])):
            self.near_duplicates.append((text, kept))

    def _documents(self) -> Iterator[Prepared]:
        for batch in self._prepared:
            documents = list(map(Prepared._make, batch))
            pieces = [piece for document in documents for piece in document.pieces]
            self.seen.expect([digest for _, own, _, bands in pieces for digest in (own, *bands)])
            yield from documents

    def train(self) -> Iterator[Text]:
        """Training texts in order; ``held_out`` has the others afterwards."""
        count = 0
        for document in self._documents():
            self._taken += 1
            texts = self._texts_of(document)
            if not texts:
                continue
            for text in self._sorted(document, texts):
                if count == self.recipe.count:
                    return
                count += 1
                self.counts[text.source, text.kind]["train"] += 1
                yield text
            if count == self.recipe.count:
                return
        self._ended = True

    def _sorted(self, document: Prepared, texts: list[Text]) -> Iterator[Text]:
        """The texts that go to training now, of this document or of one that it displaces from those held out."""
        if self.labels.trains_on(document.digest):
            return iter(texts)
        return self.held_out.push(document.rank, texts)

    def held(self) -> list[Text]:
        """At most ``held_out`` texts, none of which is in training under either kind."""
        texts = [t for document in self.held_out.documents() for t in document]
        own = {digest for t in texts for digest in self._digests(t.text, t.kind)}
        out = []
        for t in texts:
            twins = self._digests(t.text, "passage" if t.kind == "query" else "query")
            if any(twin in self.seen and twin not in own for twin in twins):
                self.counts[t.source, t.kind]["left out of held_out (in training as the other kind)"] += 1
            elif len(out) < self.recipe.held_out:
                self.counts[t.source, t.kind]["held_out"] += 1
                out.append(t)
        return out

    def _digests(self, text: str, kind: str) -> tuple[bytes, ...]:
        return digest(text, kind), *(() if self._bands is None else self._bands(text, kind))
