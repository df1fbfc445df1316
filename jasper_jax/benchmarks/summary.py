"""The scores in a folder of MTEB results as a table: a row for each task, a column for each model and dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mteb import ResultCache  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.abstask import AbsTask  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Scores:
    """One model's scores at one dimension."""

    title: str
    scores: dict[str, float]
    """Task -> its main score, 0 to 1 for most; the mean over the task's splits and subsets."""


def read_scores(cache: ResultCache, tasks: Sequence[AbsTask]) -> list[Scores]:
    """All models of ``cache`` with a result of one of ``tasks``, by name and decreasing dimension."""
    every = cache.load_results(
        tasks=tasks, load_experiments="match_name", include_remote=False, validate_and_filter=True
    ).model_results
    revisions: dict[str, set[str]] = {}
    for result in every:
        revisions.setdefault(result.model_name, set()).add(result.model_revision)
    found: list[tuple[str, int, Scores]] = []
    for result in every:
        meta = result.model_meta
        dim = meta.embed_dim if isinstance(meta, ModelMeta) and isinstance(meta.embed_dim, int) else 0
        several = f" {result.model_revision[:7]}" if len(revisions[result.model_name]) > 1 else ""
        scores = {task.task_name: score for task in result.task_results if np.isfinite(score := task.get_score())}
        more = {k: v for k, v in (meta.experiment_kwargs or {}).items() if k != "embed_dim"} if meta else {}
        title = "\n".join([f"{result.model_name}{several}", str(dim or ""), *(f"{v}" for v in more.values())])
        if scores:
            found.append((result.model_name, -dim, Scores(title, scores)))
    return [scores for *_, scores in sorted(found, key=lambda item: (item[0], item[1], item[2].title))]


def summary_table(models: Sequence[Scores], tasks: Sequence[AbsTask]) -> Table:
    """Tasks by their type, then the means; in percent, as on MTEB's leaderboard.

    A mean is over all tasks, or all of a type, and empty for a model without a score of one of them.
    """
    table = Table(
        box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False, caption="the main score of each task, in percent"
    )
    table.add_column("type", overflow="fold")
    table.add_column("task", overflow="fold")
    for model in models:
        table.add_column(escape(model.title), justify="right", overflow="fold")

    def add(kind: str, name: str, names: Sequence[str]) -> None:
        def mean(model: Scores) -> str:
            if not all(name in model.scores for name in names):
                return ""
            return f"{100 * np.mean([model.scores[name] for name in names]):.2f}"

        table.add_row(escape(kind), escape(name), *map(mean, models))

    by_type: dict[str, list[str]] = {}
    for task in tasks:
        by_type.setdefault(task.metadata.type, []).append(task.metadata.name)
    for kind, names in sorted(by_type.items()):
        for name in names:
            add(kind if name == names[0] else "", name, [name])
    table.add_section()
    for kind, names in sorted(by_type.items()):
        if len(names) > 1:
            add(kind, f"mean of {len(names)} tasks", names)
    if len(tasks) > 1:
        add("", f"mean of all {len(tasks)} tasks", [task.metadata.name for task in tasks])
    return table
