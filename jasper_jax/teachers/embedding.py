"""Fills a vector store shard by shard, in any number of processes that need not communicate: who makes which shard
follows from the process's number. On a cluster a driver gives the shards out (``scheduling``).

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

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.progress import bar
from jasper_jax.teachers.overlap import overlapped
from jasper_jax.teachers.shard_maker import Encode, ShardMaker, Steps, encoding_steps
from jasper_jax.teachers.store_writer import StoreWriter, Task, refuse_foreign
from jasper_jax.teachers.vectors import VectorSpec, VectorStore


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
    refuse_foreign(Path(folder))
    return fill_store(
        folder,
        texts,
        spec,
        encoding_steps(Path(folder), texts, spec, encode),
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
    writer = StoreWriter.begin(folder, texts, spec, draws, progress=progress)
    if writer is None:
        return VectorStore.open(folder, texts, spec)
    own = texts.shards[process_index::process_count]
    share = f" (process {process_index} of {process_count})" if process_count > 1 else ""
    wanted = {shard: int(writer.wanted(shard).sum()) for shard in own}
    todo = [task for task in writer.tasks() if task.shard in wanted]
    total, start = sum(wanted.values()), time.monotonic()
    before = total - sum(wanted[task.shard] for task in todo)
    with bar(f"{folder.name}{share}", total, "texts", start=before, enabled=progress) as shown:
        if todo:
            maker = ShardMaker(writer, steps)

            def store(task: Task, made: np.ndarray | None) -> None:
                maker.store(task, made)
                count = tokens()
                note = "" if count is None else f"{count / (time.monotonic() - start):,.0f} tokens/s"
                shown.advance(wanted[task.shard], note)

            overlapped(todo, maker.read, maker.compute, store)
    return writer.finish()
