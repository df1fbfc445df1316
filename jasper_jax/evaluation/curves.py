"""What plots and report draw: the events of ``metrics.jsonl`` as curves, and a student's rows as one line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.evaluation.evaluation import EvaluationRow
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.events import read_events

_WINDOW = 16  # a running median is over 1/16 of a stage


def read_metrics(path: str | os.PathLike) -> tuple[list[dict], list[dict]]:
    """The "step" and the "evaluation" events by global step; of a step logged twice, the later event.

    Raises:
      UserError: there is no such file, no step in it, a line before the last is not a JSON object, or an event has no
        step.
    """
    events: dict[str, dict[tuple[int, int], dict]] = {"step": {}, "evaluation": {}}
    for event in read_events(Path(path)):
        if event.get("event") in events:
            event.setdefault("terms", {})
            if "global_step" not in event:
                raise UserError(f"{path}: an event {event['event']!r} has no global_step")
            events[event["event"]][event["global_step"], stage_of(event)] = event
    if not events["step"]:
        raise UserError(f"{path}: no training step is recorded in it")
    steps, evaluations = ([by_step[key] for key in sorted(by_step)] for by_step in events.values())
    return steps, evaluations


def stage_of(event: dict) -> int:
    """The index of the event's stage."""
    return event.get("stage_index", 0)


def points(events: Iterable[dict], read: Any) -> tuple[np.ndarray, np.ndarray]:
    """Global steps and values ``read(event)`` of the events whose value is a number."""
    pairs = [(event["global_step"], value) for event in events if isinstance(value := read(event), int | float)]
    return np.array([x for x, _ in pairs], float), np.array([y for _, y in pairs], float)


def running_median(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 400 positions in ``y``, including the first and the last, and the median around each."""
    half = len(y) // (2 * _WINDOW)
    place = np.linspace(0, len(y) - 1, min(len(y), 400)).astype(int)
    return place, np.array([np.median(y[max(0, k - half) : k + half + 1]) for k in place])


def one_per_dimension(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows by increasing dimension; where two heads provide one, that of the head that is shorter at its full
    length."""
    longest: dict[str | None, int] = {}
    for row in rows:
        longest[row.head] = max(row.dim, longest.get(row.head, 0))
    ordered = sorted(rows, key=lambda row: (row.dim, longest[row.head]))
    return list({row.dim: row for row in reversed(ordered)}.values())[::-1]
