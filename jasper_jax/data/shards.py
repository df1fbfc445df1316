"""A data set in a folder: ArrayRecord shards that are complete or absent, readable with TFDS.

All stores have this form. A shard is written under a temporary name, flushed to disk and renamed. Thanks to
``dataset_info.json`` and ``features.json``, ``tfds.builder_from_directory(folder).as_data_source(split)`` and Grain
read the folder without this package.
"""

from __future__ import annotations

import errno
import functools
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from pydantic import BaseModel, ConfigDict, Field

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import Manifest, write_atomic

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
SPLITS = (TRAIN, HELD_OUT)
"""The splits of texts and their vectors."""
PAIR_SPLITS = (TRAIN, HELD_OUT, TEST)
"""The splits of image-caption pairs, and the order of splits in the shard map of any store."""
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO)


class ShardInfo(NamedTuple):
    """A shard: rows ``start`` to ``start + rows`` of its split."""

    split: str
    index: int
    rows: int
    start: int


def shard_map(sizes: Mapping[str, int], shard_rows: int) -> tuple[ShardInfo, ...]:
    """The shards of splits with ``sizes`` rows; all but a split's last have ``shard_rows`` rows."""
    return tuple(
        ShardInfo(split, index, min(shard_rows, sizes[split] - start), start)
        for split in PAIR_SPLITS
        for index, start in enumerate(range(0, sizes.get(split, 0), shard_rows))
    )


def shard_file(name: str, shard: ShardInfo, shards: Iterable[ShardInfo]) -> str:
    """The file name TFDS gives the shard, e.g. ``texts-train.array_record-00000-of-00008``."""
    count = sum(s.split == shard.split for s in shards)
    return f"{name}-{shard.split}.array_record-{shard.index:05d}-of-{count:05d}"


Count = Annotated[int, Field(ge=0)]


class ShardEntry(BaseModel):
    """A shard as a manifest records it; ``file`` is a name in the store's own folder."""

    model_config = ConfigDict(strict=True)

    split: str
    index: Count
    file: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
    rows: Count
    bytes: Count
    sha256: str


class StoreManifest(Manifest):
    """What the manifests of all stores have in common."""

    splits: dict[str, Count]
    shards: Sequence[ShardEntry]


def other_shards(recorded: Sequence[Mapping[str, Any]], shards: Sequence[ShardInfo], rows: str = "texts") -> str | None:
    """How the shards of a manifest differ from the map ``shards``; None if they do not."""
    if [(s["split"], s["index"], s["rows"]) for s in recorded] == [(s.split, s.index, s.rows) for s in shards]:
        return None
    return f"its {len(recorded)} shards are not the {len(shards)} shards of the {rows}"


@functools.cache
def example_class() -> Any:
    """The tf.Example message of TFDS's records, imported at first use, as that takes 0.4 s."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  (made by protobuf at run time)


def example(values: Mapping[str, bytes]) -> bytes:
    """A serialised tf.Example, as protobuf's ``SerializeToString(deterministic=True)`` writes it, in a third of its
    time: ``Example {Features {entry {name, Feature {BytesList {value}}} ...}}``, each with its tag and length."""
    pieces: list[bytes] = []
    for name in sorted(values):
        value = values[name]
        pieces += _entry_head(name, len(value)), value
    return b"\x0a" + _varint(sum(map(len, pieces))) + b"".join(pieces)  # Example.features


@functools.lru_cache(maxsize=1 << 14)
def _entry_head(name: str, size: int) -> bytes:
    """What comes before a value of ``size`` bytes."""
    key, head = name.encode(), b""
    for tag in (b"\x0a", b"\x0a", b"\x12"):  # BytesList.value, Feature.bytes_list, entry.value
        head = tag + _varint(size + len(head)) + head
    head = b"\x0a" + _varint(len(key)) + key + head  # entry.key
    return b"\x0a" + _varint(len(head) + size) + head  # Features.feature


def _varint(number: int) -> bytes:
    """``number`` as protobuf writes it: 7 bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def write_records(path: Path, records: Iterable[bytes], *, compress: bool) -> None:
    """Write the ArrayRecord file ``path`` and flush it to disk."""
    writer = ArrayRecordWriter(str(path), "group_size:1" + ("" if compress else ",uncompressed"))
    try:
        for record in records:
            writer.write(record)
        writer.close()
    except RuntimeError as e:  # ArrayRecord raises it for every file system error
        number = next((n for n in _WRITE_ERRORS if os.strerror(n) in str(e)), errno.EIO)
        raise OSError(number, f"{os.strerror(number)} ({str(e).splitlines()[0]})", str(path)) from e
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_metadata(
    folder: Path,
    name: str,
    features: Mapping[str, Any],
    shards: Sequence[ShardInfo],
    size: Mapping[str, int],
    about: str,
) -> None:
    """Write ``dataset_info.json`` and ``features.json`` for shards that are (or will be) in ``folder``.

    ``features`` are TFDS feature connectors, ``size`` the bytes of each split. Several processes may do this at once:
    the content depends on the arguments alone, and the writes are atomic.
    """
    import tensorflow_datasets as tfds

    splits = [s for s in PAIR_SPLITS if any(shard.split == s for shard in shards)]
    # TFDS reads the names of the data set and its splits from the files beside the metadata. Give it an empty file a
    # split in a temporary folder, so that the store itself never has a partly written file.
    with tempfile.TemporaryDirectory() as temporary:
        for shard in shards:
            if shard.index == 0:
                (Path(temporary) / shard_file(name, shard, shards)).touch()
        tfds.folder_dataset.write_metadata(
            data_dir=temporary,
            features=dict(features),
            split_infos=[
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[s.rows for s in shards if s.split == split],
                    num_bytes=size[split],
                )
                for split in splits
            ],
            check_data=False,  # would import TensorFlow
            description=about,
        )
        for file in ("dataset_info.json", "features.json"):
            write_atomic(folder / file, (Path(temporary) / file).read_bytes())


class ShardReader:
    """Random access to the records of a set of shards by (split, row). Thread-safe; picklable.

    At most ``open_files`` shards are open at a time: a batch of a large store may touch a shard a row, and a process
    may open about a thousand files. Opening one takes 0.1 ms.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[ShardInfo, str],
        remedy: str,
        open_files: int = 256,
        splits: Sequence[str] = SPLITS,
    ):
        self.folder = Path(folder)
        self.remedy = remedy
        self.shards = {split: [s for s in files if s.split == split] for split in splits}
        self.files = dict(files)
        self.open_files = open_files
        self._starts = {k: np.array([s.start for s in v], np.int64) for k, v in self.shards.items()}
        self._clear()

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[ShardInfo, tuple[ArrayRecordReader, threading.Lock]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def size(self, split: str) -> int:
        if split not in self.shards:
            raise KeyError(f"split {split!r}; there are {', '.join(self.shards)}")
        return sum(s.rows for s in self.shards[split])

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """The records at ``indices`` of ``split``, in that order (an index may repeat)."""
        rows = np.asarray(indices, np.int64)
        size = self.size(split)
        if rows.size and not 0 <= rows.min() <= rows.max() < size:
            raise IndexError(f"{self.folder}: rows {rows.min()} to {rows.max()} of split {split}, of {size} rows")
        which = np.searchsorted(self._starts[split], rows, side="right") - 1
        order = np.argsort(which, kind="stable")
        records: list[bytes] = [b""] * len(rows)
        for group in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            if group.size:
                shard = self.shards[split][which[group[0]]]
                for i, record in zip(group.tolist(), self._records(shard, (rows[group] - shard.start).tolist())):
                    records[i] = record
        return records

    def read_shard(self, shard: ShardInfo) -> list[bytes]:
        return self._records(shard, list(range(shard.rows)))

    def _records(self, shard: ShardInfo, rows: list[int]) -> list[bytes]:
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                entry = self._open[shard] = self._open_shard(shard), threading.Lock()
                if len(self._open) > self.open_files:
                    self._open.popitem(last=False)  # a thread that reads from it keeps it open
            else:
                self._open.move_to_end(shard)
        reader, lock = entry
        try:
            with lock:
                return reader.read(rows)
        except RuntimeError as e:
            raise self._damaged(shard, str(e)) from None

    def _open_shard(self, shard: ShardInfo) -> ArrayRecordReader:
        path = self.folder / self.files[shard]
        if not path.exists():
            raise UserError(f"{path}: shard is missing; {self.remedy}")
        reader = ArrayRecordReader(
            str(path), options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32768
        )
        if reader.num_records() != shard.rows:  # a truncated file opens without an error, with no rows
            raise self._damaged(shard, f"expected {shard.rows} rows, got {reader.num_records()}")
        return reader

    def _damaged(self, shard: ShardInfo, why: str) -> UserError:
        path = self.folder / self.files[shard]
        return UserError(f"{path}: shard is damaged ({why}); {self.remedy}")
