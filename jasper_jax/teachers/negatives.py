"""Mined negatives on disk, filled shard by shard by any number of processes that need not communicate.

spec.json     written first: pins pairs, teachers and settings; other ones are refused
train-*       the pairs of a shard: rows of their negatives, the teachers' similarities; complete or absent
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.data.shards import SPLITS
from jasper_jax.runtime import files
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.teachers.store_writer import refuse_foreign

FORMAT = 1
SHARD = 4096
"""Pairs of a shard, the unit of work."""


class MinedPairs(NamedTuple):
    """Mined negatives of n pairs.

    rows: ``[n, K]`` int32, nearest first, -1 for none.
    scores: ``[n, K]`` float32, the teachers' similarity of query and negative; 0 for none.
    answer: ``[n]`` float32, that of query and answer.
    left_out: ``[n]`` int32, how many passages were too near, known answers not counted.
    """

    rows: np.ndarray
    scores: np.ndarray
    answer: np.ndarray
    left_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class Negatives:
    """The complete negatives of a text store's pairs by split; ``fingerprint``: a hash of everything in them."""

    pairs: Mapping[str, MinedPairs]
    fingerprint: str


class PairShard(NamedTuple):
    """The pairs ``start`` to ``stop`` (exclusive) of a split."""

    split: str
    start: int
    stop: int
    name: str


class NegativeStore:
    """Negatives in ``folder``. ``spec``: what determines them, as JSON values; ``sizes``: pairs by split; ``depth``:
    K."""

    def __init__(self, folder: Path, spec: Mapping[str, Any], sizes: Mapping[str, int], depth: int):
        self.folder, self.spec, self.depth = folder, {"format": FORMAT, **spec}, depth
        self.shards = list(_shards(sizes))

    def pin(self) -> None:
        """Record ``spec`` in ``spec.json``. UserError: it records another one, or others' files are in the folder."""
        refuse_foreign(self.folder, "store of negatives")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "spec.json"
        if not path.exists():
            files.write_once(path, files.json_bytes(files.sealed(self.spec)))
        self._refuse_other(path)

    def missing(self) -> list[PairShard]:
        """The shards that are absent or damaged."""
        return [shard for shard in self.shards if self._read(shard) is None]

    def write(self, shard: PairShard, mined: MinedPairs) -> None:
        array = np.zeros(len(mined.rows), self._dtype)
        for name, values in mined._asdict().items():
            array[name] = values
        files.write_cached_array(self.folder / shard.name, array)

    def open(self) -> Negatives:
        """UserError: shards are missing, or the negatives are of other pairs, teachers or settings."""
        path = self.folder / "spec.json"
        if path.exists():
            self._refuse_other(path)
        arrays = {shard: self._read(shard) for shard in self.shards}
        done = sum(array is not None for array in arrays.values())
        if done < len(arrays) or not path.exists():
            raise UserError(
                f"{self.folder}: negatives are not mined, {done} of {len(arrays)} shards are there; run jasper mine"
            )
        digest = hashlib.sha256(files.json_bytes(self.spec))
        pairs = {}
        for split in SPLITS:
            parts = [array for shard, array in arrays.items() if shard.split == split and array is not None]
            whole = np.concatenate([np.zeros(0, self._dtype), *parts])
            digest.update(whole.tobytes())
            pairs[split] = MinedPairs(*(whole[name] for name in MinedPairs._fields))
        return Negatives(pairs, digest.hexdigest())

    @property
    def _dtype(self) -> np.dtype:
        K = self.depth
        return np.dtype([("rows", "i4", (K,)), ("scores", "f4", (K,)), ("answer", "f4"), ("left_out", "i4")])

    def _read(self, shard: PairShard) -> np.ndarray | None:
        array = files.read_cached_array(self.folder / shard.name)
        valid = array is not None and array.dtype == self._dtype and len(array) == shard.stop - shard.start
        return array if valid else None

    def _refuse_other(self, path: Path) -> None:
        try:
            recorded = parse_json(read_record_bytes(path))
            whole = files.is_whole(recorded)
            recorded = {key: value for key, value in recorded.items() if key != "checksum"}
        except (OSError, ValueError, AttributeError, TypeError):
            whole, recorded = False, None
        if not whole:
            raise UserError(f"{path}: damaged; delete the folder and run jasper mine")
        if different := files.differences(recorded, parse_json(files.json_bytes(self.spec)), ""):
            raise UserError(
                f"{self.folder}: its negatives were mined for other pairs, teachers or settings: {'; '.join(different)}"
                f"; change the recipe back, or delete the folder and run jasper mine"
            )


def _shards(sizes: Mapping[str, int]) -> Iterator[PairShard]:
    for split in SPLITS:
        count = -(-sizes[split] // SHARD)
        for index in range(count):
            start = index * SHARD
            name = f"{split}-{index:05d}-of-{count:05d}.npy"
            yield PairShard(split, start, min(start + SHARD, sizes[split]), name)
