"""Scores of models by a benchmark's tasks, which ``jasper mteb`` leaves in ``summary.json`` beside MTEB's own files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from jasper_jax.evaluation.record_file import read_record
from jasper_jax.runtime.files import sealed, write_atomic

FOLDER = "mteb"
"""Folder of a run, for the scores of its export."""
FILE = "summary.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelScores(_Record):
    """One model's scores at one dimension."""

    model: str
    """``organisation/name``; a revision follows where the folder has results of several."""
    dim: int | None
    settings: list[str]
    """What is not the model's own: ``cut`` vectors, prompts, a backend."""
    scores: dict[str, float]
    """Task -> its main score, 0 to 1 for most; the mean over the task's splits and subsets."""

    def title(self, separator: str) -> str:
        return separator.join([self.model, str(self.dim or ""), *self.settings])


class Row(NamedTuple):
    """A task, or the mean of several."""

    kind: str
    name: str
    scores: list[float | None]
    """In percent, by model; None: the model has no score of it, or of one of the tasks."""
    is_mean: bool


class BenchmarkScores(_Record):
    tasks: dict[str, str]
    """Task -> its type."""
    models: list[ModelScores]

    def rows(self) -> Iterator[Row]:
        """Tasks by their type, then the means of each type and of all; in percent, as on MTEB's leaderboard."""
        by_kind: dict[str, list[str]] = {}
        for task, kind in self.tasks.items():
            by_kind.setdefault(kind, []).append(task)
        for kind, tasks in sorted(by_kind.items()):
            for task in tasks:
                yield Row(kind, task, self._means([task]), False)
        for kind, tasks in sorted(by_kind.items()):
            if len(tasks) > 1:
                yield Row(kind, f"mean of {len(tasks)} tasks", self._means(tasks), True)
        if len(self.tasks) > 1:
            yield Row("", f"mean of all {len(self.tasks)} tasks", self._means(list(self.tasks)), True)

    def _means(self, tasks: list[str]) -> list[float | None]:
        return [
            100 * sum(model.scores[task] for task in tasks) / len(tasks) if model.scores.keys() >= {*tasks} else None
            for model in self.models
        ]


def write(path: Path, scores: BenchmarkScores) -> None:
    write_atomic(path, json.dumps(sealed(scores.model_dump(mode="json")), indent=1) + "\n")


def read(path: Path) -> BenchmarkScores | None:
    """None: there is no such file. UserError: it is damaged."""
    return read_record(path, BenchmarkScores, "scores by a benchmark", "jasper mteb") if path.is_file() else None
