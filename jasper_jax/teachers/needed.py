"""Which texts need the teachers' vectors: those that the stages of a recipe draw."""

from __future__ import annotations

from jasper_jax.data.draw_order import stage_seed
from jasper_jax.data.drawn import Draws
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import resolve_stages


def needed_draws(recipe: Recipe, size: int) -> Draws | None:
    """The draws from ``size`` training texts of all stages that learn from the teachers, and of the closed-form starts
    of their heads. None: all texts, since some stage draws an epoch or labelled pairs."""
    stages = resolve_stages(recipe)
    if any(stage.learns_from("pairs") for stage in stages):
        return None
    taught = [
        stage
        for stage in stages
        if stage.learns_from("texts") and any(recipe.heads[head].target == "teachers" for head in stage.heads)
    ]
    ordered = {stage_seed(recipe.seed, stage.index): stage.steps * stage.batch_size for stage in taught}
    ridge = any(recipe.heads[head].init == "ridge" for stage in taught for head in stage.heads)
    number = recipe.training.ridge_texts if ridge else 0
    if max([number, *ordered.values()], default=0) >= size:
        return None
    return Draws(tuple(sorted(ordered.items())), ((recipe.seed, number),) if ridge else ())
