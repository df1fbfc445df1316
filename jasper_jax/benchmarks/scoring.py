"""Score a model by MTEB's tasks: results in MTEB's own folders, a finished task is not run again."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import datasets
import mteb  # pyright: ignore[reportMissingImports]

from jasper_jax.benchmarks.encoder import MtebEncoder
from jasper_jax.benchmarks.tasks import subtasks
from jasper_jax.runtime.console import print_traceback
from jasper_jax.runtime.errors import Interrupted, UserError, first_line
from jasper_jax.runtime.progress import say

if TYPE_CHECKING:
    from mteb import ResultCache  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.abstask import AbsTask  # pyright: ignore[reportMissingImports]


def score_tasks(encoders: Sequence[MtebEncoder], tasks: Sequence[AbsTask], cache: ResultCache) -> dict[str, str]:
    """Run every task without results in ``cache`` for each encoder, and save its results there, one file each.

    A task whose data cannot be fetched, or that fails, does not stop the others.

    Returns:
      The names of the tasks without a score, and why.

    Raises:
      UserError: the model's vectors cannot be scored.
      Interrupted: the job was asked to stop.
    """
    failed: dict[str, str] = {}
    for number, task in enumerate(tasks, 1):
        for encoder, part in product(encoders, subtasks(task)):
            dims = (
                f", {encoder.dim} dimensions" if part is task else f": {part.metadata.name}, {encoder.dim} dimensions"
            )
            say(f"task {number} of {len(tasks)}: {task.metadata.name}{dims}")
            if problem := _score(encoder, part, cache):
                failed[task.metadata.name] = problem
                say(f"{part.metadata.name}: {problem}")
                break
    return failed


def _score(encoder: MtebEncoder, task: AbsTask, cache: ResultCache) -> str | None:
    """The results of one task into ``cache``, if they are not there; returns why it has none."""
    _drop_unreadable(encoder, task, cache)
    try:
        mteb.evaluate(
            encoder,
            task,
            cache=cache,
            co2_tracker=False,
            public_only=False,
            show_progress_bar=False,
            encode_kwargs={"show_progress_bar": False},
        )
    except (UserError, Interrupted):
        raise
    except Exception as error:  # noqa: BLE001  (data sets are read by code of their own, which raises anything)
        if os.environ.get("JASPER_DEBUG"):
            print_traceback(error)
        what = "failed" if task.data_loaded else "its data cannot be fetched"
        return f"{what} ({type(error).__name__}: {first_line(error)})"
    finally:
        if task.data_loaded:
            task.unload_data()
    return None


def _drop_unreadable(encoder: MtebEncoder, task: AbsTask, cache: ResultCache) -> None:
    """Delete results whose writing was cut short: the task runs again."""
    try:
        cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except ValueError:
        path = cache.get_task_result_path(task.metadata.name, encoder.mteb_model_meta)
        say(f"{path}: unreadable, so {task.metadata.name} runs again")
        path.unlink()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and bars of MTEB, data sets and the hub: what a user can act on, errors say."""
    loggers = [logging.getLogger(name) for name in ("mteb", "datasets", "huggingface_hub", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
