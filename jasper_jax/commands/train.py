"""``jasper train``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jasper_jax.commands.opening import open_training_run
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jax.sharding import Mesh

    from jasper_jax.data.pairs import PairStore
    from jasper_jax.data.texts import TextStore
    from jasper_jax.run import Run


def train_stages(recipe: Recipe) -> None:
    """``jasper train``."""
    run, mesh = open_training_run(recipe)
    with run.run_folder.alone("train"), stop_flag() as stop:
        timings = Timings(run.folder)
        with stop.immediately():
            texts = None if recipe.texts is None else run.data.texts()
            pairs = run.data.pairs() if run.trains_on_images else None
        train_run(run, mesh, texts, pairs, timings, stop)


def train_run(
    run: Run,
    mesh: Mesh,
    texts: TextStore | None,
    pairs: PairStore | None,
    timings: Timings,
    stop: Callable[[int], bool],
) -> None:
    """Train all stages; Interrupted if ``stop`` says so before the last step."""
    from jasper_jax.training.loop import train

    view = None if texts is None else run.vectors.view(texts)
    negatives = None if texts is None else run.vectors.negatives(texts)
    folder, student = run.run_folder, run.student
    if not train(folder, student, mesh, texts, view, timings, stop, pairs, negatives, progress=run.progress):
        raise Interrupted
