"""Which texts of the sources enter the store: augments and counts documents, drops duplicates, holds out documents.

The texts of labelled pairs (``labels``) are in the store already: equal ones are duplicates, and a document of a
held-out pair never enters training.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from jasper_jax.data.augment import augment_document, keyed_hash
from jasper_jax.data.labels import Labels
from jasper_jax.data.sources import Document, Mix
from jasper_jax.data.text import Text, digest
from jasper_jax.recipe.config_sources import Texts


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
        heapq.heappush(self._heap, (-rank, -self._added, texts))
        self.texts += len(texts)
        while self._heap and self.texts - len(self._heap[0][2]) >= self.size:
            released = heapq.heappop(self._heap)[2]
            self.texts -= len(released)
            yield from released

    def documents(self) -> list[list[Text]]:
        return [texts for _, _, texts in sorted(self._heap, reverse=True)]


class Selection:
    """One pass over the documents of a recipe; ``counts[source, kind, what]`` of what happened to them."""

    def __init__(self, texts: Texts, seed: int, labels: Labels):
        self.recipe, self.seed, self.labels = texts, seed, labels
        self.mix = Mix(texts, seed)
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.held_out = HeldOut(texts.held_out)
        self.seen: set[bytes] = set(labels.digests)

    def _new(self, text: str, kind: str) -> bool:
        """Whether no earlier text of this kind equals it; about 100 bytes of memory a text."""
        size = len(self.seen)
        self.seen.add(digest(text, kind))
        return len(self.seen) > size

    def _texts_of(self, document: Document) -> list[Text]:
        text, kind, source = document

        def count(what: str, n: int = 1) -> None:
            self.counts[source, kind, what] += n

        count("documents")
        text = text.strip()
        if not text:
            count("empty")
            return []
        if self.labels.holds_out(text):
            count("left out (of a held-out pair)")
            return []
        made = augment_document(text, kind, self.recipe.augment, self.seed)
        if made.split:
            count("documents divided")
            count("pieces", len(made.texts))
        count("words shuffled", made.shuffled)
        out = []
        for piece in made.texts:
            if len(piece) > self.recipe.max_chars:
                count("cut")
                piece = piece[: self.recipe.max_chars].rstrip()
            if self.labels.holds_out(piece):
                count("left out (of a held-out pair)")
            elif self._new(piece, kind):
                out.append(Text(piece, kind, source))
            else:
                count("duplicates")
        return out

    def train(self) -> Iterator[Text]:
        """Training texts in order; ``held_out`` has the others afterwards."""
        count = 0
        for document in self.mix:
            texts = self._texts_of(document)
            if not texts:
                continue
            for text in self._sorted(document, texts):
                if count == self.recipe.count:
                    return
                count += 1
                self.counts[text.source, text.kind, "train"] += 1
                yield text
            if count == self.recipe.count:
                return

    def _sorted(self, document: Document, texts: list[Text]) -> Iterator[Text]:
        """The texts that go to training now, of this document or of one that it displaces from those held out."""
        if self.labels.trains_on(document.text, document.kind):
            return iter(texts)
        return self.held_out.push(keyed_hash(document.text, self.seed, "held out"), texts)

    def held(self) -> list[Text]:
        """At most ``held_out`` texts, none of which is in training under either kind."""
        texts = [t for document in self.held_out.documents() for t in document]
        own = {digest(t.text, t.kind) for t in texts}
        out = []
        for t in texts:
            twin = digest(t.text, "passage" if t.kind == "query" else "query")
            if twin in self.seen and twin not in own:
                self.counts[t.source, t.kind, "left out of held_out (in training as the other kind)"] += 1
            elif len(out) < self.recipe.held_out:
                self.counts[t.source, t.kind, "held_out"] += 1
                out.append(t)
        return out
