"""Makes shards of a vector store, whoever decides which: the steps of one shard, and what a teacher does in them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers import vectors as vec
from jasper_jax.teachers.store_writer import StoreWriter, Task
from jasper_jax.teachers.vectors import VectorSpec

Encode = Callable[[list[str], list[str]], np.ndarray]
"""(texts, kinds) -> ``[n, T]``. If it has an attribute ``tokens`` (encoded so far), tokens/s are shown; if it has a
method ``prepare(texts, kinds)``, that is called ahead, in a thread, and returns the function that gives the vectors."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """How the vectors of some rows of a shard are made. The steps of several shards run at once."""

    read: Callable[[sh.ShardInfo, np.ndarray], Any]
    """(shard, rows ``[n]`` of it) -> what ``compute`` takes. In a thread."""
    compute: Callable[[Any], np.ndarray] = lambda vectors: vectors
    """-> ``[n, T]``, with the devices. For one shard at a time."""
    finish: Callable[[sh.ShardInfo, np.ndarray, np.ndarray], np.ndarray] = lambda shard, rows, vectors: vectors
    """(shard, rows, ``[n, T]``) -> ``[n, T]`` float32 of norm 1. In a thread."""

    def whole(self, shard: sh.ShardInfo) -> np.ndarray:
        """All vectors of a shard."""
        rows = np.arange(shard.rows)
        return self.finish(shard, rows, self.compute(self.read(shard, rows)))


def encoding_steps(folder: Path, texts: TextStore, spec: VectorSpec, encode: Encode) -> Steps:
    """The steps in which ``encode`` makes the vectors of the store ``folder``.

    They raise UserError if ``encode`` returns vectors that have another dimension, are not finite, or are zero.
    """
    prepare = getattr(encode, "prepare", functools.partial(functools.partial, encode))

    def read(shard: sh.ShardInfo, which: np.ndarray) -> Callable[[], np.ndarray]:
        rows = texts.read(shard.split, shard.start + which)
        return prepare([r.text for r in rows], [r.kind for r in rows])

    def finish(shard: sh.ShardInfo, which: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (len(which), spec.dim):
            raise UserError(
                f"{folder}: the teacher gave vectors of shape {list(vectors.shape)} for {len(which)} texts;"
                f" expected {[len(which), spec.dim]}"
            )
        norms = np.linalg.norm(vectors, axis=1)
        if (bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
            row = shard.start + int(which[bad[0]])
            raise UserError(
                f"{folder}: the teacher's vector of {shard.split} text {row} is "
                f"zero or not finite ({bad.size} such in this shard): {texts.read(shard.split, [row])[0].text[:60]!r}"
            )
        return vec.normalize_rows(vectors)

    return Steps(read, lambda encode_rows: encode_rows(), finish)


class ShardMaker:
    """Makes shards of ``writer``'s store by ``steps``: ``store(task, compute(read(task)))``.

    The three may overlap between shards, each with itself not.
    """

    def __init__(self, writer: StoreWriter, steps: Steps):
        """Makes the first shard's vectors if the int8 scales do not exist yet."""
        self._writer, self._steps = writer, steps
        self._known: dict[sh.ShardInfo, np.ndarray] = {}
        self._codec = writer.codec(self._first)

    def _first(self) -> np.ndarray:
        shard = self._writer.texts.shards[0]
        self._known[shard] = self._steps.whole(shard)
        return self._known[shard]

    def _rows(self, task: Task) -> np.ndarray:
        return np.flatnonzero(self._writer.lacking(task.shard, task.recorded))

    def read(self, task: Task) -> Any:
        """What ``compute`` takes; None if the shard's vectors are known, or it needs none."""
        rows = self._rows(task)
        return self._steps.read(task.shard, rows) if len(rows) and task.shard not in self._known else None

    def compute(self, inputs: Any) -> np.ndarray | None:
        return None if inputs is None else self._steps.compute(inputs)

    def store(self, task: Task, made: np.ndarray | None) -> None:
        """Write the shard, complete or not at all."""
        rows = self._rows(task)
        if made is not None:
            vectors = self._steps.finish(task.shard, rows, made)
        elif task.shard in self._known:
            vectors = self._known.pop(task.shard)[rows]
        else:
            vectors = np.zeros((0, self._writer.spec.dim), np.float32)
        self._writer.write(task.shard, task.recorded, rows, vectors, self._codec)
