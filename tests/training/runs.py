"""Runs of tiny recipes through the real loop, and the parameters they leave."""

from __future__ import annotations

import numpy as np

from jasper_jax.checkpoints.checkpoint import abstract
from jasper_jax.parameters.trees import flatten
from jasper_jax.run import Run, checkpoints_of
from jasper_jax.runtime.timings import Timings
from jasper_jax.student.start import load_student
from jasper_jax.training.loop import train


def fill(run: Run):
    """Texts and vectors of a run."""
    texts = run.texts()
    for teacher in run.recipe.teachers:
        if teacher.mode == "cached":
            run.embed(teacher, texts)
    return texts, run.teachers(texts)


def run_training(run: Run, stop=lambda step: False) -> bool:
    run.claim()
    texts, view = fill(run)
    return train(run, texts, view, Timings(run.folder), stop, run.pairs() if run.sees else None)


def parameters(run: Run, stage: int) -> dict[str, np.ndarray]:
    """Canonical leaves after a stage; -1 before the first."""
    checkpoints = checkpoints_of(run)
    dim = run.teacher_dim if run.needs_vectors else None
    _, template, _ = load_student(run.recipe, dim, run.student_source(), run.vision_source())
    path = checkpoints.start() if stage < 0 else checkpoints.final(stage)
    return {k: np.asarray(v) for k, v in flatten(checkpoints.load(path, abstract(template))).items()}
