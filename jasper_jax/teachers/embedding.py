"""Fills a vector store shard by shard, in any number of processes that need not communicate.

    spec.json           written first: pins the teacher and the texts; resuming with others is refused
    scales.json         int8 only: the scales, from the first shard; the first writer wins
    vectors-*           a shard, renamed from a temporary name when complete
    done-*.jsonl        a ledger, one per process: a line for each shard it made (size, sha256, values clipped)
    manifest.json       written last, by the process that finds all shards complete; it then deletes the ledgers

A shard is complete when both its file and its ledger line exist. A killed process loses only its current shard.

Only texts that the stages draw are embedded. When a recipe draws more, shards are made again: they keep the records
that they have, bit for bit, and get those that they lack.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar, say
from jasper_jax.teachers import vectors as vec
from jasper_jax.teachers.held import holds
from jasper_jax.teachers.store_writer import StoreWriter, refuse_foreign
from jasper_jax.teachers.vectors import VectorSpec, VectorStore

Encode = Callable[[list[str], list[str]], np.ndarray]
"""(texts, kinds) -> ``[n, T]``. If it has an attribute ``tokens`` (encoded so far), tokens/s are shown."""


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

    def vectors_of(shard: sh.ShardInfo, which: np.ndarray) -> np.ndarray:
        rows = texts.read(shard.split, shard.start + which)
        vectors = np.asarray(encode([r.text for r in rows], [r.kind for r in rows]), np.float32)
        if vectors.shape != (len(rows), spec.dim):
            raise UserError(
                f"{folder}: the teacher gave vectors of shape {list(vectors.shape)} for {len(rows)} texts;"
                f" expected {[len(rows), spec.dim]}"
            )
        norms = np.linalg.norm(vectors, axis=1)
        if (bad := np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))).size:
            raise UserError(
                f"{folder}: the teacher's vector of {shard.split} text {shard.start + int(which[bad[0]])} is "
                f"zero or not finite ({bad.size} such in this shard): {rows[bad[0]].text[:60]!r}"
            )
        return vec.normalize_rows(vectors)

    refuse_foreign(Path(folder))
    return fill_store(
        folder,
        texts,
        spec,
        vectors_of,
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
    vectors_of: Callable[[sh.ShardInfo, np.ndarray], np.ndarray],
    *,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
    draws: Draws | None = None,
    tokens: Callable[[], int | None] = lambda: None,
) -> VectorStore | None:
    """:func:`embed_teacher` for any vectors: ``vectors_of(shard, rows)`` is ``[n, T]`` float32 of norm 1, for these
    rows ``[n]`` of the shard."""
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
    start, codec = time.monotonic(), None
    first = functools.cache(lambda: vectors_of(texts.shards[0], np.arange(texts.shards[0].rows)))
    with bar(f"{folder.name}{share}", sum(wanted.values()), "texts", start=before, enabled=progress) as shown:
        for shard in own:
            if shard in done:
                continue
            codec = codec or writer.codec(first)
            old = recorded.get(shard)
            rows = np.flatnonzero(writer.lacking(shard, old))
            if codec.scales is not None and shard == texts.shards[0] and len(rows) == shard.rows:
                vectors = first()  # int8 needs it for the scales too
                first.cache_clear()
            elif len(rows):
                vectors = vectors_of(shard, rows)
            else:
                vectors = np.zeros((0, spec.dim), np.float32)
            writer.write(shard, old, rows, vectors, codec)
            count = tokens()
            shown.advance(wanted[shard], "" if count is None else f"{count / (time.monotonic() - start):,.0f} tokens/s")
    return writer.finish()
