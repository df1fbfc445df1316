"""What differs between the recipe that a folder was made with and the recipe of today, and what of it may."""

from __future__ import annotations

from typing import Any

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.runtime.files import differences

MAY_CHANGE = (
    "run_dir",
    "mirror",
    "evaluation",
    "export",
    "training.save_every",
    "training.keep",
    "training.evaluate_every",
    "training.loggers",
    "training.workers",
    "training.profile_steps",
    "training.micro_batch",
    "mesh",
    "student.remat",
    "student.vision.remat",
)
"""Keys that may differ between two commands on one run folder: the trained parameters do not depend on them (on the
last four only by the rounding of sums in another order)."""


def recipe_changes(recorded: Any, recipe: Recipe, where: str) -> list[str]:
    """What differs between a recorded recipe (a plain tree found in ``where``) and this run's, ``MAY_CHANGE`` aside."""
    there = parse_recipe(recorded, where=where)
    found = differences(there.model_dump(mode="json"), recipe.model_dump(mode="json"), "")
    return [change for change in found if not _may_change(change.partition(" ")[0])]


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)
