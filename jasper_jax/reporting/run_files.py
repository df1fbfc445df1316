"""What a run folder has for a report: its recipe, and the files that its commands have written so far."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jasper_jax.checkpoints.run_folder import HEADER
from jasper_jax.evaluation import benchmark_scores, by_text
from jasper_jax.evaluation.benchmark_scores import BenchmarkScores
from jasper_jax.evaluation.by_text import ByText
from jasper_jax.evaluation.curves import read_metrics
from jasper_jax.evaluation.evaluation import Evaluation, from_json
from jasper_jax.export.public import public_name
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_recipe
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.timings import Timings

T = TypeVar("T")
_OF_BOTH = ("tests", "recipe_sha256", "stages")


@dataclass
class RunFiles:
    """The files of the run in ``folder``. A part that is not there is None or empty, and ``missing`` says why."""

    folder: Path
    recipe: Recipe
    evaluation: Evaluation | None = None
    by_text: ByText | None = None
    benchmark: BenchmarkScores | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    """Texts by split, from the text store."""
    missing: dict[str, str] = field(default_factory=dict)
    """Part -> the sentence that stands in its place."""


_BENCHMARK = f"{benchmark_scores.FOLDER}/{benchmark_scores.FILE}"
READ = (
    *("recipe.yaml", "evaluation.json", by_text.FILE, "metrics.jsonl", "timings.json", _BENCHMARK),
    *("checkpoints", "texts"),
)
"""Files and folders of a run that a report is made of; ``-o`` replaces none of them."""


def read_run(folder: Path) -> RunFiles:
    """Read the files of a run. One that is damaged is missing, with its error as the sentence.

    Raises:
      UserError: ``folder`` is no run folder, or its recipe is not one that this program reads.
    """
    path = folder / "recipe.yaml"
    for name in READ:
        if os.path.exists(folder / name) and not (folder / name).is_dir():
            file_inside(folder / name, folder)  # the folder may be somebody else's
    if not path.is_file() or not read_record_bytes(path).startswith(HEADER.encode()):
        raise UserError(f"{folder}: no run folder (no recipe.yaml that a run wrote); give a run's folder or its recipe")
    run = RunFiles(folder, load_recipe(path))

    def part(name: str, read: Callable[[], T | None], otherwise: T, absent: str) -> T:
        try:
            found = read()
        except UserError as error:
            run.missing[name] = f"Left out: {str(error).replace(str(folder), 'the run')}."
            return otherwise
        if found is None:
            run.missing[name] = absent
            return otherwise
        return found

    run.evaluation = part(
        "evaluation",
        lambda: from_json(folder / "evaluation.json") if (folder / "evaluation.json").is_file() else None,
        None,
        "Nothing was evaluated yet: jasper evaluate scores the run.",
    )
    run.by_text = part(
        "by_text",
        lambda: _texts_of(run.evaluation, folder),
        None,
        "The evaluation kept no single texts: it is of a run with unfinished stages, or of an earlier version; jasper"
        " evaluate makes it again.",
    )
    if run.by_text is not None and not run.by_text.providers:
        run.missing["by_text"], run.by_text = "Nothing to compare the student with: no teacher was scored.", None
    run.benchmark = part("benchmark", lambda: benchmark_scores.read(folder / _BENCHMARK), None, "")
    run.steps, run.held_out = part(
        "metrics",
        lambda: read_metrics(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else None,
        ([], []),
        "Nothing was trained yet: jasper train writes the losses.",
    )
    run.seconds = Timings(folder).seconds
    if not run.seconds:
        run.missing["timings"] = "No time was recorded."
    run.texts = _store_sizes(folder, run.recipe)
    return run


def _texts_of(evaluation: Evaluation | None, folder: Path) -> ByText | None:
    """What the latest evaluation found of single texts; None if it is of another one."""
    found = by_text.read(folder / by_text.FILE)
    if found is None or evaluation is None:
        return None
    same = all(found.origin.get(key) == evaluation.metadata.get(key) for key in _OF_BOTH)
    return found if same else None


def _store_sizes(folder: Path, recipe: Recipe) -> dict[str, int]:
    """Rows by split of the run's text store; empty if it is not there."""
    stores = (folder, Path(recipe.stores)) if recipe.stores else (folder,)
    for place in stores:
        try:
            shards = parse_json(read_record_bytes(place / "texts" / "manifest.json"))["shards"]
            sizes: dict[str, int] = {}
            for shard in shards:
                sizes[str(shard["split"])] = sizes.get(str(shard["split"]), 0) + int(shard["rows"])
            return sizes
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def model_label(model: str | None, otherwise: str) -> str:
    """A model without the folders of this machine."""
    return public_name(model) if model else otherwise
