"""Differences between the recipe that a run folder was made with and today's, and which keys may differ."""

from __future__ import annotations

from typing import Any

import yaml

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_training import Stage
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.recipe.yaml_text import parse_yaml
from jasper_jax.runtime.errors import UserError, first_line
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
    "ray",
    "mesh",
    "student.remat",
    "student.vision.remat",
)
"""Keys that may differ between two commands on one run folder, because the trained parameters do not depend on them
(on the last four only through the order of sums, hence rounding)."""


def recipe_changes(recorded: Any, recipe: Recipe, where: str) -> list[str]:
    """Differences between a recorded recipe (a plain tree from ``where``) and ``recipe``, except in ``MAY_CHANGE``.

    Further stages after the recorded ones are no difference: a stage begins with the parameters of the one before, and
    its seed is its number.
    """
    before = parse_recipe(recorded, where=where)
    if _learned(before) == _learned(recipe):  # whose numbers are parameters from the start
        recipe = recipe.model_copy(update={"stages": _common(before.stages, recipe.stages)})
    changes = differences(before.model_dump(mode="json"), recipe.model_dump(mode="json"), "")
    allowed = tuple(f"{key}." for key in MAY_CHANGE)
    return [change for change in changes if not f"{change.partition(' ')[0]}.".startswith(allowed)]


def _common(before: list[Stage], asked: list[Stage]) -> list[Stage]:
    return before if asked[: len(before)] == before else asked


def _learned(recipe: Recipe) -> set[str]:
    return {term for stage in resolve_stages(recipe) for term in stage.learned_terms}


def yaml_changes(text: bytes, recipe: Recipe, where: str, remedy: str) -> list[str]:
    """As :func:`recipe_changes`, from the YAML of a recorded recipe. UserError, with ``remedy``, if it is no recipe."""
    try:
        recorded = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML ({first_line(error)}); {remedy}") from None
    try:
        return recipe_changes(recorded, recipe, where)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
