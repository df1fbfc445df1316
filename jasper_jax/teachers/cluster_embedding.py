"""Fills the stores of several teachers at once on a cluster: one queue of shards, one bar, one driver that writes no
vector itself. The bytes are those of ``embedding``: the same shards, made by the same steps."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import Bar, bar
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.scheduling import Cluster, Job, share_out
from jasper_jax.teachers.store_writer import StoreWriter, Task, refuse_foreign
from jasper_jax.teachers.teacher_worker import Order, version_reader

APPEARS = 90.0
"""Seconds until files of other nodes appear on a network file system; NFS keeps a folder's list for up to 60."""


class TeacherStore(NamedTuple):
    """The store in ``folder`` of a teacher's vectors."""

    teacher: TeacherModel
    folder: Path


def embed_on_cluster(
    stores: Sequence[TeacherStore],
    texts: TextStore,
    draws: Draws | None,
    cluster_for: Callable[[Sequence[Order]], Cluster],
    *,
    progress: bool = True,
) -> None:
    """Fill the stores, which lie in one folder, as ``embed_teacher`` does; each is complete on return.

    Args:
      cluster_for: gives the cluster whose worker for job ``i`` is that of the ``i``-th order.

    Raises:
      UserError: a store's folder holds other vectors or files; a worker's errors (``teacher_worker``), or workers are
        lost again and again (``scheduling``).
    """
    writers: list[tuple[TeacherModel, StoreWriter]] = []
    for store in stores:
        refuse_foreign(store.folder)
        writer = StoreWriter.begin(store.folder, texts, store.teacher.spec, draws, progress=progress)
        if writer is not None:
            writers.append((store.teacher, writer))
    if not writers:
        return
    tasks = [writer.tasks() for _, writer in writers]
    total = sum(int(writer.wanted(shard).sum()) for _, writer in writers for shard in texts.shards)
    left = sum(int(writer.wanted(task.shard).sum()) for (_, writer), todo in zip(writers, tasks) for task in todo)
    with (
        _token(writers[0][1].folder.parent) as token,
        bar("vectors", total, "texts", start=total - left, enabled=progress) as shown,
    ):
        orders = [
            Order(
                teacher=teacher.settings,
                folder=writer.folder.resolve(),
                texts=texts.folder.resolve(),
                draws=draws,
                token=token,
                versions=version_reader()(),
                current_folder=os.getcwd(),
            )
            for teacher, writer in writers
        ]
        count = _Count(shown)
        jobs = [
            Job(
                teacher.name,
                todo,
                lambda w=writer: w.done().keys(),
                lambda task, tokens, w=writer: count(w, task, tokens),
            )
            for (teacher, writer), todo in zip(writers, tasks)
        ]
        share_out(jobs, cluster_for(orders))
    for _, writer in writers:
        _finish(writer)


def _finish(writer: StoreWriter) -> None:
    """Complete a store whose shards workers have written."""
    deadline = time.monotonic() + APPEARS
    while writer.finish() is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{writer.folder}: shards that workers wrote do not appear here; is it one folder for all nodes? run"
                f" the same command to continue"
            )
        time.sleep(1)


class _Count:
    """Shows on a bar what workers have made."""

    def __init__(self, shown: Bar):
        self._shown, self._start, self._tokens = shown, time.monotonic(), 0

    def __call__(self, writer: StoreWriter, task: Task, tokens: int) -> None:
        self._tokens += tokens
        rate = self._tokens / (time.monotonic() - self._start)
        self._shown.advance(int(writer.wanted(task.shard).sum()), f"{rate:,.0f} tokens/s" if self._tokens else "")


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file in ``folder`` by whose random name nodes recognise that they see the same one. The folder is this
    driver's alone, so others of the kind are of drivers that were killed."""
    for left in folder.glob(".shared.*.tmp"):
        left.unlink(missing_ok=True)
    path = folder.resolve() / f".shared.{uuid.uuid4().hex[:8]}.tmp"
    path.touch()
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
