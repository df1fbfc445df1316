"""Fills a vector store shard by shard, in any number of processes that need not communicate.

    spec.json           written first: pins the teacher and the texts; resuming with others is refused
    scales.json         int8 only: the scales, from the first shard; the first writer wins
    vectors-*           a shard, renamed from a temporary name when complete
    done-*.jsonl        a ledger, one per process: a line for each shard it made (size, sha256, values clipped)
    manifest.json       written last, by the process that finds all shards complete; it then deletes the ledgers

A shard is complete when both its file and its ledger line exist. A killed process loses its current shard, and the one
before it if that is still being written.

While the devices compute a shard, a thread reads and tokenises the next one, and another writes the one before.

Only texts that the stages draw are embedded. When a recipe draws more, shards are made again: they keep the records
that they have, bit for bit, and get those that they lack.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar, say
from jasper_jax.teachers import vectors as vec
from jasper_jax.teachers.held import holds
from jasper_jax.teachers.overlap import overlapped
from jasper_jax.teachers.store_writer import StoreWriter, refuse_foreign
from jasper_jax.teachers.vectors import VectorSpec, VectorStore

Encode = Callable[[list[str], list[str]], np.ndarray]
"""(texts, kinds) -> ``[n, T]``. If it has an attribute ``tokens`` (encoded so far), tokens/s are shown; if it has a
method ``prepare(texts, kinds)``, that is called ahead, in a thread, and returns the function that gives the vectors."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """How the vectors of some rows of a shard are made. The steps of three shards run at once."""

    read: Callable[[sh.ShardInfo, np.ndarray], Any]
    """(shard, rows ``[n]`` of it) -> what ``compute`` takes. In a thread."""
    compute: Callable[[Any], np.ndarray] = lambda vectors: vectors
    """-> ``[n, T]``, with the devices. In the calling thread."""
    finish: Callable[[sh.ShardInfo, np.ndarray, np.ndarray], np.ndarray] = lambda shard, rows, vectors: vectors
    """(shard, rows, ``[n, T]``) -> ``[n, T]`` float32 of norm 1. In a thread."""

    def whole(self, shard: sh.ShardInfo) -> np.ndarray:
        """All vectors of a shard."""
        rows = np.arange(shard.rows)
        return self.finish(shard, rows, self.compute(self.read(shard, rows)))


def embed_teacher(
    folder: Path | str,
    texts: TextStore,
    spec: VectorSpec,
    encode: Encode,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
    draws: Draws | None = None,
) -> VectorStore | None:
    """Fill ``folder`` with the vectors of every held-out text and of the training texts in ``draws`` (None: of all).

    Process i makes those of the shards i, i + N, i + 2N, ... that are missing.

    Returns:
      The finished store, to the last process that finishes; None while shards are missing.

    Raises:
      UserError: ``folder`` holds vectors of another teacher, prompt or text store, or other files; or ``encode``
        returns vectors that have another dimension, are not finite, or are zero.
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

    refuse_foreign(Path(folder))
    return fill_store(
        folder,
        texts,
        spec,
        Steps(read, lambda encode_rows: encode_rows(), finish),
        process_index=process_index,
        process_count=process_count,
        progress=progress,
        draws=draws,
        tokens=lambda: getattr(encode, "tokens", None),
    )


def fill_store(
    folder: Path | str,
    texts: TextStore,
    spec: VectorSpec,
    steps: Steps,
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
    draws: Draws | None = None,
    tokens: Callable[[], int | None] = lambda: None,
) -> VectorStore | None:
    """:func:`embed_teacher` for any vectors, which ``steps`` makes."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, texts, spec, draws)
    if writer.manifest.exists():
        if not writer.reopen_for_repair():
            return VectorStore.open(folder, texts, spec)
        if progress:
            say(f"{folder.name}: shards or vectors are missing; only those are made.")
    writer.pin()
    own = texts.shards[process_index::process_count]
    recorded = writer.recorded()
    done = [shard for shard, line in recorded.items() if holds(line, writer.draws_of(shard))]
    share = f" (process {process_index} of {process_count})" if process_count > 1 else ""
    wanted = {shard: int(writer.wanted(shard).sum()) for shard in own}
    before = sum(wanted[s] for s in own if s in done)
    start, todo = time.monotonic(), [shard for shard in own if shard not in done]
    lacking = {shard: np.flatnonzero(writer.lacking(shard, recorded.get(shard))) for shard in todo}
    with bar(f"{folder.name}{share}", sum(wanted.values()), "texts", start=before, enabled=progress) as shown:
        first = functools.cache(lambda: steps.whole(texts.shards[0]))
        codec = writer.codec(first) if todo else None
        known = {texts.shards[0]: first()} if first.cache_info().currsize else {}  # int8 needs it for the scales
        first.cache_clear()

        def read(shard: sh.ShardInfo) -> Any:
            return steps.read(shard, lacking[shard]) if len(lacking[shard]) and shard not in known else None

        def compute(inputs: Any) -> np.ndarray | None:
            return None if inputs is None else steps.compute(inputs)

        def store(shard: sh.ShardInfo, made: np.ndarray | None) -> None:
            rows = lacking[shard]
            if made is not None:
                vectors = steps.finish(shard, rows, made)
            else:
                vectors = known.pop(shard)[rows] if shard in known else np.zeros((0, spec.dim), np.float32)
            assert codec is not None
            writer.write(shard, recorded.get(shard), rows, vectors, codec)
            count = tokens()
            shown.advance(wanted[shard], "" if count is None else f"{count / (time.monotonic() - start):,.0f} tokens/s")

        overlapped(todo, read, compute, store)
    return writer.finish()
