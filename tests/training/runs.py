"""Runs of tiny recipes through the real loop, and the parameters they leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jasper_jax.checkpoints.checkpoint import abstract
from jasper_jax.evaluation import providers
from jasper_jax.evaluation.evaluation import Evaluation
from jasper_jax.export import sentence_transformers
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.stage_data import mines
from jasper_jax.run import Run
from jasper_jax.runtime.timings import Timings
from jasper_jax.student.start import make_student
from jasper_jax.training.loop import train
from jasper_jax.training.run_mesh import run_mesh


def fill(run: Run):
    """Texts and vectors of a run."""
    texts = run.data.texts()
    for teacher in run.teachers:
        if teacher.settings.mode == "cached":
            run.vectors.embed(teacher, texts)
    return texts, run.vectors.view(texts)


def run_training(run: Run, stop=lambda step: False) -> bool:
    run.run_folder.claim()
    texts, view = fill(run)
    return train_stages(run, texts, view, stop)


def train_stages(run: Run, texts, view, stop=lambda step: False) -> bool:
    pairs = run.data.pairs() if run.trains_on_images else None
    mesh = run_mesh(run.recipe, make_student(run.recipe, run.teacher_dim, run.student), run.vectors)
    negatives = run.vectors.mine(texts) if mines(run.recipe) else None
    folder, timings = run.run_folder, Timings(run.folder)
    return train(folder, run.student, mesh, texts, view, timings, stop, pairs, negatives, progress=run.progress)


def evaluate(run: Run) -> Evaluation:
    return providers.evaluate(providers.embed_tests(run.run_folder, run.data, run.vectors, run.student))


def export(run: Run, output: Path) -> tuple[Path, str]:
    return sentence_transformers.export(run.run_folder, run.student, run.vectors, output)


def parameters(run: Run, stage: int) -> dict[str, np.ndarray]:
    """Canonical leaves after a stage; -1 before the first."""
    checkpoints = run.run_folder.checkpoints()
    shapes = abstract(make_student(run.recipe, run.teacher_dim, run.student).shapes())
    path = checkpoints.start() if stage < 0 else checkpoints.final(stage)
    return {k: np.asarray(v) for k, v in flatten(checkpoints.load(path, shapes)).items()}
