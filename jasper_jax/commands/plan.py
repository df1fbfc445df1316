"""``jasper plan``."""

from __future__ import annotations

from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT, print_table


def plan_recipe(
    recipe: Recipe, topologies: list[str], *, hours: float, text_tokens: int | None, price: float | None
) -> None:
    """``jasper plan``. ``hours``, ``text_tokens``, ``price``: as of ``training.plan_nights.Night``."""
    from jasper_jax.planning.gpu import prepare_gpu_compiler
    from jasper_jax.planning.machine import parse_target
    from jasper_jax.planning.topology import prepare_compiler
    from jasper_jax.runtime.compilers import use_cpu

    if not topologies:
        raise UserError("--topology: expected a TPU slice or GPUs, e.g. --topology v5e:4x4 or --topology 8xh100")
    targets = [parse_target(text) for text in topologies]
    use_cpu()
    prepare_compiler()
    prepare_gpu_compiler()

    from jasper_jax.commands.amounts import UNKNOWN, needed_count
    from jasper_jax.commands.validation import validate
    from jasper_jax.planning.report import print_plan
    from jasper_jax.recipe.extras import missing_extras
    from jasper_jax.run import Run
    from jasper_jax.training.plan_embedding import embedding_table, plan_embedding
    from jasper_jax.training.plan_nights import Night, nights_table
    from jasper_jax.training.plan_stages import plan_stages

    run = Run(recipe, describe=True)
    student, _ = validate(run)
    for line in missing_extras(recipe):
        say(line)
    for target in targets:
        print_plan(target, list(plan_stages(recipe, run.vectors, student, target)), OUT)
        embedding = [plan_embedding(teacher, target) for teacher in (run.teachers if run.needs_vectors else ())]
        if plans := [plan for plan in embedding if plan is not None]:
            print_table(embedding_table(plans), OUT)
            print_table(nights_table(plans, needed_count(run) or UNKNOWN, Night(hours, text_tokens, price)), OUT)
