"""``jasper run`` as a function: from a recipe to the student, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jasper_jax.commands import run_all
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_recipe, run_dir
from jasper_jax.reporting.write import REPORT
from jasper_jax.runtime.compilers import hidden_compilers

if TYPE_CHECKING:
    from jasper_jax.embedder import Embedder


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
