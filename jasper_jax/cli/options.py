"""What several commands take: a recipe with changes to it, and the processes that work together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path

if TYPE_CHECKING:
    from jasper_jax.recipe.config import Recipe

RecipeFile = Annotated[
    # Not a Path, which would turn gs:// into gs:/.
    str, typer.Argument(help="The recipe, a YAML file such as configs/quickstart.yaml or gs://bucket/recipe.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe as key=value, also inside lists: stages.2.steps=50"),
]
Coordinator = Annotated[str | None, typer.Option(help="host:port of process 0, if several processes work together.")]
Processes = Annotated[int | None, typer.Option(help="How many processes work together.", min=1)]
Process = Annotated[int | None, typer.Option(help="The index of this process, from 0.", min=0)]
ProcessIndex = Annotated[int, typer.Option(help="The index of this process, from 0.", min=0)]
ProcessCount = Annotated[int, typer.Option(help="How many processes share the work.", min=1)]

RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Embed on a Ray cluster (extra ray): host:port of its head, or auto; without an address on this machine.",
    ),
]


class RayAddressCommand(TyperCommand):
    """A command whose option ``--ray`` may stand without an address: before another option, a change to the recipe, or
    the end."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        following = [*args[1:], "-"]
        alone = [word == "--ray" and (next.startswith("-") or "=" in next) for word, next in zip(args, following)]
        return super().parse_args(ctx, ["--ray=local" if is_alone else word for word, is_alone in zip(args, alone)])


def refuse_beside_ray(process_index: int, process_count: int, *joined: object) -> None:
    """UserError: ``--ray`` is given with options of processes that share the work by their numbers."""
    if (process_index, process_count) != (0, 1) or any(value is not None for value in joined):
        raise UserError(
            "--ray: Ray's workers share the shards; leave out --process-index, --process-count, --coordinator,"
            " --processes and --process"
        )


def load(recipe: str, overrides: list[str] | None) -> Recipe:
    from jasper_jax.recipe.load import load_recipe

    return load_recipe(recipe, overrides or [])


def optional_path(path: Path | None) -> Path | None:
    return None if path is None else user_path(path, new=True)


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Let this process find the others, before JAX is used."""
    from jasper_jax.runtime.joining import connect
    from jasper_jax.runtime.progress import say
    from jasper_jax.runtime.xla_flags import add_flags, gpus_communicate

    added = add_flags(os.environ) if gpus_communicate(processes) else None  # before JAX reads them
    connect(coordinator, processes, process)
    if added:
        say(added)
