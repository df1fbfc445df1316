"""The data that a recipe's stages need: which stores, how much held out, whether the teachers' vectors."""

from __future__ import annotations

from collections.abc import Sequence

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import ResolvedStage, Store, resolve_stages

HELD_OUT_KEYS: dict[Store, str] = {
    "texts": "texts.held_out",
    "pairs": "texts.held_out_pairs",
    "images": "images.held_out",
}
"""The keys of the recipe with the numbers of held-out items."""


def needs(stages: Sequence[ResolvedStage], store: Store) -> bool:
    """Whether some stage learns from ``store``."""
    return any(stage.learns_from(store) for stage in stages)


def uses_teachers(recipe: Recipe) -> bool:
    """Whether the target of some stage's head is the teachers, so that their vectors are needed."""
    stages = [stage for stage in resolve_stages(recipe) if stage.kind.taught_by is None]
    return any(recipe.heads[head].target == "teachers" for stage in stages for head in stage.heads)


def mines(recipe: Recipe) -> bool:
    """Whether negatives are mined with the teachers' vectors: a stage asks for negatives, and those are stored."""
    return any(stage.negatives for stage in recipe.stages) and uses_teachers(recipe)


def held_out(recipe: Recipe, store: Store) -> int | None:
    """The number of items of ``store`` that the recipe holds out; None if it lacks the section."""
    section, key = HELD_OUT_KEYS[store].split(".")
    return getattr(getattr(recipe, section), key, None)


def no_held_out_losses(stage: ResolvedStage, held_out: int) -> str:
    """The message for a stage without held-out losses, which need at least one full batch."""
    unit = stage.kind.unit
    return (
        f"no losses on held-out {unit}: stages[{stage.index}].batch_size is {stage.batch_size}, only {held_out:,}"
        f" {unit} are held out; lower it or raise {HELD_OUT_KEYS[stage.kind.store]}"
    )
