"""How a command opens the run of a recipe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import run_dir, stores_dir
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jax.sharding import Mesh

    from jasper_jax.run import Run


def open_run(recipe: Recipe) -> Run:
    """The run of ``recipe``, which all processes share."""
    from jasper_jax.run import Run
    from jasper_jax.runtime.agreement import refuse_unlike, refuse_unshared
    from jasper_jax.runtime.program_cache import cache_programs

    processes.all_do(cache_programs)
    refuse_unlike(recipe.model_dump(mode="json"))
    refuse_unshared({"stores": stores_dir(recipe), "run_dir": run_dir(recipe)})
    return Run(recipe)


def open_training_run(recipe: Recipe) -> tuple[Run, Mesh]:
    """A validated run and its mesh over the devices of all processes, before anything is written."""
    from jasper_jax.commands.validation import validate
    from jasper_jax.training.run_mesh import run_mesh

    if any(teacher.backend == "torch" for teacher in recipe.teachers):
        # Its model needs memory of the GPU of which JAX would take 75% when it makes the mesh.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run = open_run(recipe)
    student, _ = validate(run)
    return run, run_mesh(recipe, student, run.vectors)


def refuse_index(process_index: int, process_count: int) -> None:
    """UserError if there is no such process."""
    if process_index >= process_count:
        raise UserError(f"--process-index {process_index}: allowed are 0 to {process_count - 1}")
