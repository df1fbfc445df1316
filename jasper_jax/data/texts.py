"""The text store, which every later step reads: mixed, augmented, without duplicates, with texts held out.

    sources ─► documents ─► (divide, shuffle words) ─► texts ─► no duplicates ─► train | held_out shards
    pairs ─► groups ─► train | held out ─► their distinct texts, appended to the shards; the table ``pairs.npz``

A pure function of (the recipe's ``texts``, the seed, the sources' content).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from jasper_jax.data import shards as sh
from jasper_jax.data.labels import Labels
from jasper_jax.data.pair_table import PairTable, read_tables, write_tables
from jasper_jax.data.row_store import RowManifest, RowStore, SplitWriter, Written, build_or_open, finish, write_shard
from jasper_jax.data.seen import Seen
from jasper_jax.data.selection import Selection
from jasper_jax.data.source_files import local_files, patterns_of
from jasper_jax.data.text import Text
from jasper_jax.recipe.config_sources import Texts
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import check_files
from jasper_jax.runtime.progress import Bar, bar
from jasper_jax.runtime.workers import Workers


class TextRecord(NamedTuple):
    text: str
    kind: str


class PairFile(BaseModel):
    """The table of labelled pairs, as the manifest records it."""

    model_config = ConfigDict(strict=True)

    file: Literal["pairs.npz"]
    bytes: sh.Count
    sha256: str


class TextManifest(RowManifest):
    """``manifest.json`` of a text store."""

    KEY, SPLITS = "texts", sh.SPLITS

    texts: Texts
    counts: dict[str, dict[str, dict[str, int]]]
    pairs: PairFile | None = None
    """The table of labelled pairs; None without any."""


class TextStore(RowStore[TextRecord]):
    """A text store in ``folder``. Its fingerprint is over every text and its kind."""

    WHAT, ROWS, FORMAT, MANIFEST = "text store", "texts", 1, TextManifest
    ABOUT = "Texts for distillation, with kind and source."

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        store = super().open(folder)
        if (pairs := store.manifest.get("pairs")) is not None:
            check_files(store.folder, [pairs], cls._remedy())
        return store

    @cached_property
    def pairs(self) -> dict[str, PairTable]:
        """The labelled pairs of each split; empty tables without any. UserError: their file is damaged."""
        if (pairs := self.manifest.get("pairs")) is None:
            return {split: PairTable.of([], [], [], [], []) for split in sh.SPLITS}
        return read_tables(self.folder, pairs["sha256"], self._remedy())

    @property
    def pair_fingerprint(self) -> str:
        """sha256 of the tables of pairs and of what their row numbers mean."""
        pairs = self.manifest.get("pairs")
        return hashlib.sha256(f"{self.fingerprint} {pairs and pairs['sha256']}".encode()).hexdigest()

    def verify(self) -> None:
        super().verify()
        _ = self.pairs

    @staticmethod
    def parse(record: bytes) -> TextRecord:
        feature = sh.example_class().FromString(record).features.feature
        return TextRecord(feature["text"].bytes_list.value[0].decode(), feature["kind"].bytes_list.value[0].decode())

    @staticmethod
    def digested(row: TextRecord | Text) -> bytes:
        data = row.text.encode()
        return f"{row.kind} {len(data)} ".encode() + data

    @staticmethod
    def features() -> dict[str, Any]:
        import tensorflow_datasets as tfds

        return {name: tfds.features.Text() for name in Text._fields}

    def summary(self) -> list[str]:
        lines = [
            f"{source} ({kind}): " + ", ".join(f"{n:,} {what}" for what, n in counts.items())
            for source, kinds in self.manifest["counts"].items()
            for kind, counts in kinds.items()
        ]
        return [*lines, *self.manifest["notes"]]


def _build(texts: Texts, folder: Path, seed: int, progress: Bar, workers: Workers) -> None:
    sources = local_files(patterns_of([*texts.sources, *texts.pairs]))
    labels = Labels(texts, seed)
    writers = {split: SplitWriter(folder, split, texts.shard_rows, _write_texts, workers) for split in sh.SPLITS}
    given: dict[str, int] = {}

    def rows(stream: Iterable[Text], split: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
        given[split] = 0
        for text in stream:
            given[split] += 1
            if split == sh.TRAIN and given[split] % 256 == 0:
                progress.advance(256)
            yield tuple(text), TextStore.digested(text)
        for text in labels.texts[split]:
            yield tuple(text), TextStore.digested(text)

    with Seen(folder / "seen.sqlite") as seen:
        selection = Selection(texts, seed, labels, seen, workers)
        writers[sh.TRAIN].write(rows(selection.train(), sh.TRAIN))
        writers[sh.HELD_OUT].write(rows(selection.held(), sh.HELD_OUT))
    sizes = {split: writer.rows for split, writer in writers.items()}
    progress.advance(given[sh.TRAIN] % 256)
    documents = sum(counts["documents"] for counts in selection.counts.values())
    if texts.sources:
        _refuse_too_few(texts, sizes, documents)
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for (source, kind), happened in selection.counts.items():
        counts.setdefault(source, {})[kind] = dict(happened)
    for (source, what), n in labels.counts.items():
        if n:
            counts.setdefault(source, {}).setdefault("pairs", {})[what] = n
    more = {"pairs": write_tables(folder, labels.tables(given))} if texts.pairs else {}
    notes = _notes(texts, given, selection.exhausted, labels.held_out_pairs)
    notes += [_near_duplicate(text, kept) for text, kept in selection.near_duplicates]
    finish(TextStore, folder, writers, texts, seed, sources, counts=counts, notes=notes, **more)


def _near_duplicate(text: str, kept: str) -> str:
    """Both texts from shortly before they differ."""
    start = max(0, len(os.path.commonprefix([text, kept])) - 30)

    def shown(whole: str) -> str:
        return repr(f"{'...' * bool(start)}{whole[start : start + 60]}{'...' * (len(whole) > start + 60)}")

    return f"a near-duplicate: {shown(text)}, of {shown(kept)}"


def _write_texts(path: Path, texts: Sequence[tuple[str, ...]]) -> Written:
    """Write a shard; ``texts`` are the fields of :class:`Text`."""
    records = (sh.example(dict(zip(Text._fields, map(str.encode, text)))) for text in texts)
    return write_shard(path, records, compress=True)


def _refuse_too_few(texts: Texts, sizes: dict[str, int], documents: int) -> None:
    if not documents:
        raise UserError("texts.sources: the sources give no documents")
    if sizes[sh.TRAIN] < 2:
        raise UserError(
            f"texts: {documents:,} documents leave {sizes[sh.TRAIN]} texts for training after "
            f"{sizes[sh.HELD_OUT]:,} held out (texts.held_out: {texts.held_out}), expected at least 2; lower held_out "
            f"or add texts"
        )


def _notes(texts: Texts, sizes: dict[str, int], exhausted: dict[str, int], held_out_pairs: int) -> list[str]:
    notes = []
    if texts.count is not None:
        if sizes[sh.TRAIN] < texts.count:
            notes.append(f"warning: texts.count is {texts.count:,}, the sources gave {sizes[sh.TRAIN]:,}")
        notes += [f"{name} ran out after {n:,} documents, before texts.count" for name, n in exhausted.items()]
    notes += [f"warning: {name} gave no document" for name, n in exhausted.items() if not n]
    if texts.pairs and held_out_pairs < texts.held_out_pairs:
        notes.append(
            f"warning: texts.held_out_pairs is {texts.held_out_pairs:,}, only {held_out_pairs:,} were held out"
        )
    if texts.sources and sizes[sh.HELD_OUT] < texts.held_out:
        notes.append(f"warning: texts.held_out is {texts.held_out:,}, only {sizes[sh.HELD_OUT]:,} were held out")
    return notes


def build_text_store(
    texts: Texts, folder: Path | str, seed: int, *, progress: bool = True, workers: Workers | None = None
) -> TextStore:
    """Build the text store in ``folder``, or open it if it exists (see ``row_store.build_or_open``).

    ``workers`` read, prepare and write (None: one for each core, if there is much to do); they are closed at the end.
    The store does not depend on them.

    UserError: unreadable sources, fewer than 2 training texts, a store of another recipe in ``folder``, or source files
    that have changed since it was built (they may be deleted).
    """

    def build(temporary: Path) -> None:
        with bar("texts", texts.count, "texts", enabled=progress) as shown, workers or Workers() as shared:
            _build(texts, temporary, seed, shown, shared)

    def check(store: TextStore) -> None:
        store.refuse_other(texts, seed, patterns_of([*texts.sources, *texts.pairs]))

    return build_or_open(TextStore, Path(folder), build, check, progress=progress)
