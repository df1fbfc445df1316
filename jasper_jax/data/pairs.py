"""The pair store: image-caption pairs for a stage that teaches the student images, some held out, some for a test.

    sources ─► usable, distinct pairs ─► written down as they come ─► groups divided ─► train | held_out | test shards

A pure function of (the recipe's ``images``, the seed, the sources' content): the order of the sources and of what is in
them plays no part where no ``limit`` cuts them. Building takes twice the disk space of the pairs for a while, and some
hundred bytes of memory a pair. Images stay encoded as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.data import shards as sh
from jasper_jax.data.image_log import Example, SourceLog
from jasper_jax.data.image_sources import check_image_sources, read_image_source, source_key
from jasper_jax.data.pair_split import Entry, Pairs, divide, entry_of
from jasper_jax.data.row_store import RowManifest, RowStore, SplitWriter, build_or_open, finish
from jasper_jax.data.source_files import hashed
from jasper_jax.recipe.config_sources import Images
from jasper_jax.runtime import files
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
    """What was left out of each source, by reason: how many, and the first names."""


class PairStore(RowStore[Pair]):
    """A pair store in ``folder``. Its fingerprint is over everything in it."""

    WHAT, ROWS, FORMAT, MANIFEST = "pair store", "pairs", 1, PairManifest

    @staticmethod
    def parse(record: bytes) -> Pair:
        feature = sh.example_class().FromString(record).features.feature
        image, *texts = (feature[name].bytes_list.value[0] for name in Pair._fields)
        return Pair(image, *(text.decode() for text in texts))

    @staticmethod
    def digested(row: Pair) -> bytes:
        parts = (row.image, row.caption.encode(), row.name.encode(), row.group.encode())
        return b"".join(b"%d " % len(part) + part for part in parts)

    def captions(self, split: str, start: int, stop: int) -> list[str]:
        """The captions of rows ``start`` to ``stop`` (exclusive) of ``split``."""
        return [pair.caption for pair in self.read(split, range(start, stop))]

    def summary(self) -> list[str]:
        """What became of the pairs and what was left out, one line a source, then the notes: for people."""
        lines = []
        for source, counts in self.manifest["counts"].items():
            found = [f"{n:,} {what}" for what, n in counts.items()]
            found += [f"{e['count']:,} {reason}" for reason, e in self.manifest["skipped"].get(source, {}).items()]
            lines.append(f"{source}: {', '.join(found)}")
        return [*lines, *self.manifest["notes"]]


# ----------------------------------------------------------------------------------------- building


def _example(pair: Example) -> bytes:
    """A tf.Example of the pair; ``deterministic`` fixes the order of its fields."""
    example = sh.example_class()()
    for name in Pair._fields:
        value = getattr(pair, name)
        example.features.feature[name].bytes_list.value.append(value if name == "image" else value.encode())
    return example.SerializeToString(deterministic=True)


def _gather(
    images: Images, logs: Sequence[SourceLog], spool: SplitWriter, counts: list[Counter[str]], shown: Bar
) -> Pairs:
    """Write every usable pair down as it comes; what is known of the distinct ones."""
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
                    yield _example(example), b""

    spool.write(rows())
    return pairs


def _build(images: Images, folder: Path, seed: int, progress: bool) -> None:
    logs = [SourceLog(source, source_key(number)) for number, source in enumerate(images.sources)]
    counts: list[Counter[str]] = [Counter() for _ in logs]
    spool = SplitWriter(folder, sh.TRAIN + "-unsorted", images.shard_rows, compress=False)
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
    for found in counts:
        found[_LEFT_OUT] -= sum(found[split] for split in splits)
    writers = _write(splits, spool, folder, images.shard_rows)
    written = finish(folder, "pairs", writers, images.shard_rows)
    _write_tfds(folder, sh.shard_map(sizes, images.shard_rows), written["shards"])
    names = _names(logs)
    manifest = {
        **written,
        "format": PairStore.FORMAT,
        "seed": seed,
        "images": images.model_dump(mode="json"),
        "counts": {name: {what: n for what, n in found.items() if n} for name, found in zip(names, counts)},
        "skipped": {name: log.as_json() for name, log in zip(names, logs)},
        "notes": _notes(images, splits),
        "files": [file.model_dump() for file in hashed(_files(logs))],
    }
    files.write_atomic(folder / "manifest.json", files.json_bytes(files.sealed(manifest)))


def _names(logs: Sequence[SourceLog]) -> list[str]:
    """A name for each source, with its number where two are called alike."""
    twice = Counter(log.label for log in logs)
    return [f"{log.key} {log.label}" if twice[log.label] > 1 else log.label for log in logs]


def _files(logs: Sequence[SourceLog]) -> list[Any]:
    found = {path: file for log in logs for path, file in log.files.items()}
    return [found[path] for path in sorted(found)]


def _write(splits: dict[str, list[Entry]], spool: SplitWriter, folder: Path, shard_rows: int) -> dict[str, SplitWriter]:
    """Write the splits' shards from what was written down, which then goes."""
    map_ = sh.shard_map({sh.TRAIN: spool.rows}, shard_rows)
    parts = {shard: part.name for shard, part in zip(map_, spool.parts, strict=True)}
    reader = sh.ShardReader(folder, parts, "build the pair store again")

    def rows(entries: Sequence[Entry]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(entries), 64):
            for record in reader.read(sh.TRAIN, [entry.row for entry in entries[start : start + 64]]):
                yield record, PairStore.digested(PairStore.parse(record))

    writers = {split: SplitWriter(folder, split, shard_rows, compress=False) for split in sh.PAIR_SPLITS}
    for split, writer in writers.items():
        writer.write(rows(splits[split]))
    for part in spool.parts:
        part.unlink()
    return writers


def _write_tfds(folder: Path, shards: Sequence[sh.ShardInfo], entries: Iterable[dict[str, Any]]) -> None:
    import numpy as np
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {name: tfds.features.Text() for name in Pair._fields}
    features["image"] = tfds.features.Scalar(dtype=np.object_)  # encoded, of any format and number of channels
    size = Counter[str]()
    for entry in entries:
        size[entry["split"]] += entry["bytes"]
    sh.write_metadata(
        folder, "pairs", features, shards, size, "Image-caption pairs, images encoded as in their source."
    )


def _refuse_too_few(images: Images, sizes: dict[str, int], distinct: int) -> None:
    if sizes[sh.TRAIN] < 2:
        raise UserError(
            f"images: {distinct:,} distinct pairs leave {sizes[sh.TRAIN]} for training after {sizes[sh.TEST]:,} tested "
            f"(images.test: {images.test}) and {sizes[sh.HELD_OUT]:,} held out (images.held_out: {images.held_out}), "
            f"each with its group; at least 2 are needed: lower them or add images"
        )


def _notes(images: Images, splits: dict[str, list[Entry]]) -> list[str]:
    notes = []
    for split, wanted in ((sh.HELD_OUT, images.held_out), (sh.TEST, images.test)):
        found = splits[split]
        if len(found) < wanted:
            notes.append(f"warning: images.{split} is {wanted:,}, there are groups for {len(found):,} only")
        if same := len(found) - len({entry.caption for entry in found}):
            notes.append(f"warning: {same:,} pairs of {split} have a caption that another has; retrieval mixes them up")
    return notes


def build_pair_store(images: Images, folder: Path | str, seed: int, *, progress: bool = True) -> PairStore:
    """Build the pair store in ``folder``, or open it when it was already built from the same recipe.

    May be called by several processes at once: one builds, the others wait and open. Killed at any moment,
    the next call starts again and gives the same store. UserError: unreadable sources, too many unusable images, fewer
    than 2 training pairs, a store of another recipe in ``folder``, or source files that have changed since it was built
    (files that are gone are not needed any more).
    """
    patterns = [source.webdataset for source in images.sources if source.webdataset is not None]

    def build(place: Path) -> None:
        check_image_sources(images)
        _build(images, place, seed, progress)

    def check(store: PairStore) -> None:
        store.refuse_other(images, seed, patterns)

    return build_or_open(PairStore, Path(folder), build, check, progress=progress)
