"""The scores in a folder of MTEB results as a table: a row for each task, a column for each model and dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jasper_jax.evaluation.benchmark_scores import BenchmarkScores, ModelScores

if TYPE_CHECKING:
    from mteb import ResultCache  # pyright: ignore[reportMissingImports]
    from mteb.abstasks.abstask import AbsTask  # pyright: ignore[reportMissingImports]


def read_scores(cache: ResultCache, tasks: Sequence[AbsTask]) -> BenchmarkScores:
    """All models of ``cache`` with a result of one of ``tasks``, by name and decreasing dimension."""
    every = cache.load_results(
        tasks=tasks, load_experiments="match_name", include_remote=False, validate_and_filter=True
    ).model_results
    revisions: dict[str, set[str]] = {}
    for result in every:
        revisions.setdefault(result.model_name, set()).add(result.model_revision)
    found: list[ModelScores] = []
    for result in every:
        meta = result.model_meta
        dim = meta.embed_dim if isinstance(meta, ModelMeta) and isinstance(meta.embed_dim, int) else None
        several = f" {result.model_revision[:7]}" if len(revisions[result.model_name]) > 1 else ""
        scores = {
            task.task_name: float(score) for task in result.task_results if np.isfinite(score := task.get_score())
        }
        more = [str(v) for k, v in (meta.experiment_kwargs or {}).items() if k != "embed_dim"] if meta else []
        if scores:
            found.append(ModelScores(model=f"{result.model_name}{several}", dim=dim, settings=more, scores=scores))
    found.sort(key=lambda model: (model.model, -(model.dim or 0), model.settings))
    return BenchmarkScores(tasks={task.metadata.name: task.metadata.type for task in tasks}, models=found)


def summary_table(scores: BenchmarkScores) -> Table:
    """A mean is empty for a model without a score of one of its tasks."""
    table = Table(
        box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False, caption="the main score of each task, in percent"
    )
    table.add_column("type", overflow="fold")
    table.add_column("task", overflow="fold")
    for model in scores.models:
        table.add_column(escape(model.title("\n")), justify="right", overflow="fold")
    means, kind = False, None
    for row in scores.rows():
        if row.is_mean and not means:
            table.add_section()
            means, kind = True, None
        shown = "" if row.kind == kind else row.kind
        table.add_row(escape(shown), escape(row.name), *("" if x is None else f"{x:.2f}" for x in row.scores))
        kind = row.kind
    return table
