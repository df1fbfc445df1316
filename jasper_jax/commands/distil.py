"""``jasper run``, and the same from Python: from a recipe to the student, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jasper_jax.commands.evaluate import embed_tests_of, report_run, score
from jasper_jax.commands.export import export_to
from jasper_jax.commands.opening import open_training_run
from jasper_jax.commands.stores import embed_share, fill_stores, mine
from jasper_jax.commands.train import train_run
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_recipe, run_dir
from jasper_jax.reporting.write import REPORT
from jasper_jax.runtime import processes
from jasper_jax.runtime.compilers import hidden_compilers
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT, print_table
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jasper_jax.embedder import Embedder
    from jasper_jax.evaluation.providers import Embedded
    from jasper_jax.run import Run


@dataclass(frozen=True)
class Distilled:
    """A finished run.

    Attributes:
      folder: the run folder, with checkpoints, metrics and plots.
      export: the student as a folder for sentence-transformers.
      evaluation: the JSON file of the scores of teachers and student.
      report: the page of the run for a browser; None without the extra ``report``.
      recipe: the recipe with all its values.
    """

    folder: Path
    export: Path
    evaluation: Path
    report: Path | None
    recipe: Recipe = field(repr=False)

    def embedder(self, **options: Any) -> Embedder:
        """The exported student in JAX; ``options`` are those of ``Embedder.load``."""
        from jasper_jax.embedder import Embedder

        return Embedder.load(self.export, **options)


def distil(recipe: str | Path | Mapping[str, Any] | Recipe, /, **overrides: Any) -> Distilled:
    """Distil the recipe's teachers into its student: texts, vectors, stages, evaluation and export, as ``jasper run``.

    Parts that are complete are skipped, and a run that was stopped or killed continues, so the same call may be made
    again.

    Args:
      recipe: a YAML file, an address such as ``gs://bucket/recipe.yaml``, the keys of a recipe as a mapping, or what
        ``load_recipe`` returns.
      **overrides: values of the recipe by key, which replace its own: ``run_dir="runs/mine"``, or of keys inside
        sections and lists ``**{"stages.2.steps": 50}``.

    Returns:
      Where the run, the export and the evaluation are.

    Raises:
      UserError: the recipe, a file or a folder cannot be used; the message has the key, the value and the remedy.
      KeyboardInterrupt: interrupted (Ctrl-C, a notebook's stop button) and saved: training stops after the current
        step. Interrupted once more it stops at once, and the steps since the last checkpoint are lost.
      Interrupted: stopped by SIGTERM, and saved.
    """
    loaded = load_recipe(recipe, overrides)
    with hidden_compilers():
        run_all(loaded)
    folder = run_dir(loaded)
    report = folder / REPORT
    return Distilled(
        folder, folder / "export", folder / "evaluation.json", report if report.is_file() else None, loaded
    )


def run_all(recipe: Recipe) -> None:
    """``jasper run``: texts, vectors, negatives, stages, evaluation, export, report. What the first process does last,
    from scoring on, it does when the others have ended."""
    from jasper_jax.evaluation.results import is_evaluated
    from jasper_jax.export.sentence_transformers import refuse_foreign
    from jasper_jax.recipe.stage_data import mines

    run, mesh = open_training_run(recipe)
    with run.run_folder.alone("run"):
        with stop_flag() as stop:
            refuse_foreign(run.folder / "export")
            timings = Timings(run.folder)
            with stop.immediately():
                texts, pairs = fill_stores(run, timings, partial(embed_share, run, timings, 0, 1), training=True)
                if mines(recipe) and texts is not None:
                    mine(run, texts, timings, 0, 1)
            train_run(run, mesh, texts, pairs, timings, stop)
            with stop.immediately():
                known = processes.first_says(lambda: is_evaluated(run.run_folder))
                embedded = None if known else embed_tests_of(run, timings)
            if stop():
                raise Interrupted
        if processes.go_on_alone():
            with stop_flag() as stop, stop.immediately():
                finish(run, embedded, timings)
            print_table(timings.table(), OUT)


def finish(run: Run, embedded: Embedded | None, timings: Timings) -> None:
    """Evaluate, export and report, unless an earlier command did so after the last stage. ``embedded``: None if it did
    the first."""
    from jasper_jax.export.sentence_transformers import is_exported
    from jasper_jax.reporting.write import REPORT

    if embedded is None:
        say("evaluation.json is of this recipe and these stages; jasper evaluate makes it again.")
    else:
        score(run, embedded, timings)
    exported = embedded is None and is_exported(run.run_folder, run.folder / "export")
    if exported:
        say(f"{run.folder / 'export'} is of this recipe; jasper export makes it again.")
    else:
        export_to(run, timings, None)
    if not exported or not (run.folder / REPORT).is_file():
        report_run(run)
