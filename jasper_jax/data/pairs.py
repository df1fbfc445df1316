"""The pair store: image-caption pairs for a stage that teaches the student images, some held out, some for a test.

    sources ─► usable, distinct pairs ─► unsorted shards ─► split by groups ─► train | held_out | test shards

A pure function of (the recipe's ``images``, the seed, the sources' content), independent of the order of the sources
and of their rows unless a ``limit`` cuts them. While it is built it takes twice the disk space of the pairs, and a few
hundred bytes of memory a pair. Images stay encoded as in their source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.image_log import Example, SourceLog
from jasper_jax.data.image_sources import check_image_sources, read_image_source
from jasper_jax.data.pair_split import Entry, Pairs, divide, entry_of
from jasper_jax.data.row_store import RowManifest, RowStore, SplitWriter, build_or_open, finish, write_shard
from jasper_jax.recipe.config_sources import Images
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import Bar, bar

_LEFT_OUT = "left out (others of their groups are held out or tested)"


class Pair(NamedTuple):
    """A row of the store; ``image`` is encoded as in its source."""

    image: bytes
    caption: str
    name: str
    group: str


class PairManifest(RowManifest):
    """``manifest.json`` of a pair store."""

    KEY, SPLITS = "images", sh.PAIR_SPLITS

    images: Images
    skipped: dict[str, dict[str, dict[str, Any]]]
    """What was skipped in each source, by reason: how many, and the first names."""


class PairStore(RowStore[Pair]):
    """A pair store in ``folder``. Its fingerprint is over everything in it."""

    WHAT, ROWS, FORMAT, MANIFEST = "pair store", "pairs", 1, PairManifest
    ABOUT = "Image-caption pairs, images encoded as in their source."

    @staticmethod
    def parse(record: bytes) -> Pair:
        feature = sh.example_class().FromString(record).features.feature
        image, *texts = (feature[name].bytes_list.value[0] for name in Pair._fields)
        return Pair(image, *(text.decode() for text in texts))

    @staticmethod
    def digested(row: Pair) -> bytes:
        values = _encoded(row).values()
        return b"".join(b"%d " % len(value) + value for value in values)

    @staticmethod
    def features() -> dict[str, Any]:
        import tensorflow_datasets as tfds

        image = tfds.features.Scalar(dtype=np.object_)  # encoded, of any format and number of channels
        return {**{name: tfds.features.Text() for name in Pair._fields}, "image": image}

    def captions(self, split: str, start: int, stop: int) -> list[str]:
        """The captions of rows ``start`` to ``stop`` (exclusive) of ``split``."""
        return [pair.caption for pair in self.read(split, range(start, stop))]

    def summary(self) -> list[str]:
        lines = []
        for source, counts in self.manifest["counts"].items():
            clauses = [f"{n:,} {what}" for what, n in counts.items()]
            clauses += [f"{e['count']:,} {reason}" for reason, e in self.manifest["skipped"].get(source, {}).items()]
            lines.append(f"{source}: {', '.join(clauses)}")
        return [*lines, *self.manifest["notes"]]


def _encoded(pair: Pair | Example) -> dict[str, bytes]:
    texts = {name: getattr(pair, name).encode() for name in ("caption", "name", "group")}
    return {"image": pair.image, **texts}


def _gather(
    images: Images, logs: Sequence[SourceLog], spool: SplitWriter, counts: list[Counter[str]], shown: Bar
) -> Pairs:
    """Write every usable pair to ``spool``; the entries of the distinct ones."""
    pairs = Pairs()

    def rows() -> Iterator[tuple[bytes, bytes]]:
        row = 0
        for number, source in enumerate(images.sources):
            for example in read_image_source(source, images, logs[number]):
                shown.advance()
                counts[number]["pairs"] += 1
                entry = entry_of(example, row, number)
                dropped = pairs.add(entry)
                if dropped is not None:
                    counts[dropped.source]["duplicates"] += 1
                if dropped is not entry:
                    row += 1
                    yield sh.example(_encoded(example)), b""

    spool.write(rows())
    return pairs


def _build(images: Images, folder: Path, seed: int, progress: bool) -> None:
    logs = [SourceLog(source, f"images.sources[{number}]") for number, source in enumerate(images.sources)]
    counts: list[Counter[str]] = [Counter() for _ in logs]
    spool = SplitWriter(folder, sh.TRAIN + "-unsorted", images.shard_rows, write_shard)
    with bar("images", None, "pairs", enabled=progress) as shown:
        pairs = _gather(images, logs, spool, counts, shown)
    splits = divide(pairs.groups(), seed, images.test, images.held_out)
    sizes = {split: len(splits[split]) for split in sh.PAIR_SPLITS}
    _refuse_too_few(images, sizes, len(pairs.of))
    for split, entries in splits.items():
        for entry in entries:
            counts[entry.source][split] += 1
    for entry in pairs.of.values():
        counts[entry.source][_LEFT_OUT] += 1
    for count in counts:
        count[_LEFT_OUT] -= sum(count[split] for split in splits)
    writers = _write(splits, spool, folder, images.shard_rows)
    names = _names(logs)
    source_files = {path: file for log in logs for path, file in log.files.items()}
    finish(
        PairStore,
        folder,
        writers,
        images,
        seed,
        [source_files[path] for path in sorted(source_files)],
        counts={name: {what: n for what, n in count.items() if n} for name, count in zip(names, counts)},
        skipped={name: log.as_json() for name, log in zip(names, logs)},
        notes=_notes(images, splits),
    )


def _names(logs: Sequence[SourceLog]) -> list[str]:
    """A name for each source, with its key if two have the same label."""
    labels = Counter(log.label for log in logs)
    return [f"{log.key} {log.label}" if labels[log.label] > 1 else log.label for log in logs]


def _write(splits: dict[str, list[Entry]], spool: SplitWriter, folder: Path, shard_rows: int) -> dict[str, SplitWriter]:
    """Write the splits' shards from ``spool``, then delete its files."""
    shards = sh.shard_map({sh.TRAIN: spool.rows}, shard_rows)
    names = {shard: part.name for shard, part in zip(shards, spool.parts, strict=True)}
    reader = sh.ShardReader(folder, names, "build the pair store again")

    def rows(entries: Sequence[Entry]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(entries), 64):
            for record in reader.read(sh.TRAIN, [entry.row for entry in entries[start : start + 64]]):
                yield record, PairStore.digested(PairStore.parse(record))

    writers = {split: SplitWriter(folder, split, shard_rows, write_shard) for split in sh.PAIR_SPLITS}
    for split, writer in writers.items():
        writer.write(rows(splits[split]))
    for part in spool.parts:
        part.unlink()
    return writers


def _refuse_too_few(images: Images, sizes: dict[str, int], distinct: int) -> None:
    if sizes[sh.TRAIN] < 2:
        raise UserError(
            f"images: {distinct:,} distinct pairs leave {sizes[sh.TRAIN]} for training after {sizes[sh.TEST]:,} tested "
            f"(images.test: {images.test}) and {sizes[sh.HELD_OUT]:,} held out (images.held_out: {images.held_out}), "
            f"each with its group, expected at least 2; lower them or add images"
        )


def _notes(images: Images, splits: dict[str, list[Entry]]) -> list[str]:
    notes = []
    for split, wanted in ((sh.HELD_OUT, images.held_out), (sh.TEST, images.test)):
        entries = splits[split]
        if len(entries) < wanted:
            notes.append(f"warning: images.{split} is {wanted:,}, there are groups for {len(entries):,} only")
        if repeated := len(entries) - len({entry.caption for entry in entries}):
            notes.append(
                f"warning: {repeated:,} pairs of {split} repeat another's caption; retrieval cannot tell them apart"
            )
    return notes


def build_pair_store(images: Images, folder: Path | str, seed: int, *, progress: bool = True) -> PairStore:
    """Build the pair store in ``folder``, or open it if it exists (see ``row_store.build_or_open``).

    UserError: unreadable sources, too many unusable images, fewer than 2 training pairs, a store of another recipe in
    ``folder``, or source files that have changed since it was built (they may be deleted).
    """
    patterns = [source.webdataset for source in images.sources if source.webdataset is not None]

    def build(temporary: Path) -> None:
        check_image_sources(images)
        _build(images, temporary, seed, progress)

    def check(store: PairStore) -> None:
        store.refuse_other(images, seed, patterns)

    return build_or_open(PairStore, Path(folder), build, check, progress=progress)
