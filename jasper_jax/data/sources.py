"""Where texts come from: every kind of source becomes one stream of documents, never held in memory.

The files of a source are read in a seeded order, its documents are shuffled in a buffer, and sources are mixed by
weight, document by document. Errors name the file and the line or row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate, chain, islice

from jasper_jax.assets.corpora import Document
from jasper_jax.data.libraries import hf_rows, tfds_rows
from jasper_jax.data.parts import columns_of, documents_of, parts, read_part, stream_part
from jasper_jax.data.source_files import label, pattern_of
from jasper_jax.recipe.config_sources import Texts, TextSource
from jasper_jax.runtime.workers import Workers


def _splits(source: TextSource) -> list[str]:
    return [source.split] if isinstance(source.split, str) else list(source.split or [])


def read_source(source: TextSource, seed: int, workers: Workers | None = None) -> Iterator[Document]:
    """The documents of one source in the order of its (shuffled) files; ``limit`` is not applied here.

    ``workers`` read the parts of local files. This process streams the others: data sets of libraries, compressed
    files, and parts with an error, which so is raised after the documents before it.
    """
    if pattern_of(source) is not None:
        if workers is None:
            yield from chain.from_iterable(map(stream_part, parts(source, seed)))
            return
        for part, documents in workers.map(read_part, parts(source, seed)):
            yield from stream_part(part) if documents is None else map(Document._make, documents)
    elif source.asset is not None:
        from jasper_jax.assets.corpora import read_corpus

        yield from read_corpus(source.asset, _splits(source) or None, source.kind)
    elif source.tfds is not None:
        rows = tfds_rows(source.tfds, source.config, _splits(source), columns_of(source), "texts.sources")
        yield from documents_of(source, rows)
    elif source.hf is not None:
        yield from documents_of(source, hf_rows(source.hf, source.config, _splits(source), "texts.sources"))


def check_sources(texts: Texts) -> None:
    """UserError if a source's files, its columns or its asset do not exist; reads a row of each."""
    for source in texts.sources:
        if pattern_of(source) is not None:
            next(read_source(source, 0), None)
        elif source.asset is not None:
            from jasper_jax.assets.corpora import corpus_splits

            corpus_splits(source.asset, _splits(source) or None)


def shuffled(stream: Iterator[Document], buffer: int, rng: random.Random) -> Iterator[Document]:
    """``stream`` through a buffer of ``buffer`` documents, from which the next one is drawn at random."""
    held: list[Document] = []
    for document in stream:
        if len(held) < buffer:
            held.append(document)
            continue
        i = int(rng.random() * buffer)
        yield held[i]
        held[i] = document
    while held:
        i = int(rng.random() * len(held))
        held[i], held[-1] = held[-1], held[i]
        yield held.pop()


class Mix:
    """All sources of a recipe as one stream: each next document comes from a source drawn by weight.

    When a source runs out, the others get its share.
    """

    def __init__(self, texts: Texts, seed: int, workers: Workers | None = None):
        self.texts, self.seed, self.workers = texts, seed, workers
        self._exhausted: list[tuple[str, int, int]] = []

    def exhausted(self, taken: int | None = None) -> dict[str, int]:
        """The sources that had run out when the document of number ``taken`` came (None: at the end), with the number
        of documents they gave."""
        return {name: given for name, given, before in self._exhausted if taken is None or before < taken}

    def _stream(self, number: int, source: TextSource) -> Iterator[Document]:
        rng = random.Random(f"{self.seed}/source {number}")
        return islice(
            shuffled(read_source(source, self.seed, self.workers), self.texts.shuffle_buffer, rng), source.limit
        )

    def __iter__(self) -> Iterator[Document]:
        rng = random.Random(f"{self.seed}/mix")
        sources = self.texts.sources
        live = {i: self._stream(i, source) for i, source in enumerate(sources)}
        given = [0] * len(sources)
        while live:
            numbers, bounds = list(live), list(accumulate(sources[i].weight for i in live))
            while True:
                i = rng.choices(numbers, cum_weights=bounds)[0] if len(numbers) > 1 else numbers[0]
                document = next(live[i], None)
                if document is None:
                    break
                given[i] += 1
                yield document
            del live[i]
            self._exhausted.append((f"sources[{i}] {label(sources[i])}", given[i], sum(given)))
