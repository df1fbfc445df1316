"""Tasks of MTEB by their names or the names of benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

import mteb  # pyright: ignore[reportMissingImports]
from mteb.benchmarks.get_benchmark import get_benchmarks  # pyright: ignore[reportMissingImports]
from mteb.get_tasks import TASK_LIST  # pyright: ignore[reportMissingImports]

from jasper_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask  # pyright: ignore[reportMissingImports]


def select_tasks(benchmark: str | None, names: Sequence[str]) -> list[AbsTask]:
    """The tasks of a benchmark, such as the 56 of ``MTEB(eng, classic)``; with ``names`` only these of it.

    A task taken from a benchmark has the splits and subsets of that benchmark; one without a benchmark has its own.

    Raises:
      UserError: neither is given, a name that MTEB or the benchmark does not have, or a task of images, audio or video.
    """
    tasks = _named(benchmark, names)
    for task in tasks:
        if others := sorted(set(task.metadata.modalities) - {"text"}):
            raise UserError(f"--tasks {task.metadata.name}: has {' and '.join(others)}; only tasks of text are scored")
    return tasks


def _named(benchmark: str | None, names: Sequence[str]) -> list[AbsTask]:
    if benchmark is None:
        if not names:
            raise UserError("nothing to score by; give --benchmark 'MTEB(eng, v2)' or --tasks STS12,SciFact")
        return [_task(name) for name in dict.fromkeys(names)]
    try:
        tasks = list(mteb.get_benchmark(benchmark).tasks)
    except KeyError:
        every = get_benchmarks()
        known = [name for found in every for name in (found.name, *(found.aliases or ()))]
        raise UserError(f"--benchmark {benchmark!r}: no such benchmark{_nearest(benchmark, known)}") from None
    by_name = {task.metadata.name: task for task in tasks}
    for name in names:
        if name not in by_name:
            raise UserError(f"--tasks {name}: not in {benchmark}{_nearest(name, list(by_name))}")
    return [by_name[name] for name in dict.fromkeys(names)] if names else tasks


def subtasks(task: AbsTask) -> list[AbsTask]:
    """The tasks whose scores ``task`` combines, such as the forums of CQADupstackRetrieval, then ``task`` itself."""
    return [*(getattr(task.metadata, "tasks", None) or ()), task]


def task_names() -> list[str]:
    """The names of all tasks of MTEB."""
    return [task.metadata.name for task in TASK_LIST]


def _task(name: str) -> AbsTask:
    try:
        return mteb.get_task(name)
    except KeyError:
        raise UserError(f"--tasks {name}: no such task{_nearest(name, task_names())}") from None


def _nearest(name: str, known: list[str]) -> str:
    """``"; did you mean A, B or C?"``; letters count alike in either case."""
    by_lower = {other.lower(): other for other in known}
    close = [repr(by_lower[found]) for found in get_close_matches(name.lower(), list(by_lower), n=3)]
    return f"; did you mean {' or '.join(close)}?" if close else ""
