"""The commands on recipes, and the ``jasper`` command with all others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from jasper_jax.cli import pages, push, scoring, vectors
from jasper_jax.cli.options import (
    Coordinator,
    Overrides,
    Process,
    ProcessCount,
    Processes,
    ProcessIndex,
    RayAddress,
    RayAddressCommand,
    RecipeFile,
    join_processes,
    load,
    optional_path,
    refuse_beside_ray,
)
from jasper_jax.runtime.compilers import hidden_compilers
from jasper_jax.runtime.ending import run_to_end
from jasper_jax.runtime.paths import user_path

app = typer.Typer(
    name="jasper",
    help="Distil strong text-embedding models into one small student with short vectors (Jasper and Stella).",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(vectors.vectors_app, name="vectors", no_args_is_help=True)
app.add_typer(vectors.texts_app, name="texts", no_args_is_help=True)
app.add_typer(scoring.app)
app.add_typer(pages.app)
app.add_typer(push.app)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of all commands."""
    if debug:
        os.environ["JASPER_DEBUG"] = "1"
    if context.invoked_subcommand != "plan":
        context.with_resource(hidden_compilers())


@app.command()
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Validate a recipe; print it resolved, what each stage trains, and what it needs.

    Example: `jasper check configs/quickstart.yaml stages.2.steps=50`
    """
    from jasper_jax.commands.check import check_recipe

    check_recipe(load(recipe, overrides))


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    topology: Annotated[
        list[str] | None, typer.Option(help="A TPU slice or GPUs, e.g. v5e:4x4 or 8xh100; may be given several times.")
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Embedding: the mean length of a text; default: the longest.", min=1)
    ] = None,
    night: Annotated[float, typer.Option(help="Embedding: hours in which it has to be done.", min=0.01)] = 10.0,
    price: Annotated[float | None, typer.Option(help="Embedding: of one host for one hour.", min=0)] = None,
) -> None:
    """Compile every stage's step for TPUs or GPUs, none needed: memory, communication, least time; and how many hosts
    embed the texts in a night.

    Example: `jasper plan configs/jasper_2b.yaml --topology v5e:4x4 --topology v5e:16x16`
    """
    from jasper_jax.commands.plan import plan_recipe

    plan_recipe(load(recipe, overrides), topology or [], hours=night, text_tokens=text_tokens, price=price)


@app.command(cls=RayAddressCommand)
def embed(
    recipe: RecipeFile,
    overrides: Overrides = None,
    ray: RayAddress = None,
    process_index: ProcessIndex = 0,
    process_count: ProcessCount = 1,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Build the text store and fill the teachers' vector stores; resumes where it stopped.

    Example: `jasper embed configs/quickstart.yaml --process-index 0 --process-count 4`; on a Ray cluster, `jasper embed
    configs/quickstart.yaml --ray HEAD:6379`
    """
    from jasper_jax.commands.stores import embed_teachers, embed_teachers_on_ray

    if ray is not None:
        refuse_beside_ray(process_index, process_count, coordinator, processes, process)
        embed_teachers_on_ray(load(recipe, overrides), ray)
        return
    join_processes(coordinator, processes, process)
    embed_teachers(load(recipe, overrides), process_index, process_count)


@app.command()
def mine(
    recipe: RecipeFile,
    overrides: Overrides = None,
    process_index: ProcessIndex = 0,
    process_count: ProcessCount = 1,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Find hard negatives of the labelled pairs by the teachers' vectors; resumes where it stopped.

    Example: `jasper mine configs/quickstart_pairs.yaml --process-index 0 --process-count 4`
    """
    from jasper_jax.commands.stores import mine_negatives

    join_processes(coordinator, processes, process)
    mine_negatives(load(recipe, overrides), process_index, process_count)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Train all stages; the same command resumes at the batch where it stopped.

    Example: `jasper train configs/quickstart.yaml`
    """
    from jasper_jax.commands.train import train_stages

    join_processes(coordinator, processes, process)
    train_stages(load(recipe, overrides))


@app.command()
def export(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: export in the run.")] = None,
    all_dims: Annotated[
        bool, typer.Option("--all-dims", help="A folder for each dimension, named for it, inside the output folder.")
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="With onnx/model.onnx and its int8 form; the recipe may be an exported folder."),
    ] = False,
) -> None:
    """Write the student as a Hugging Face folder that sentence-transformers loads, and check that it does.

    Example: `jasper export configs/quickstart.yaml export.dim=256 --output my-model-256`
    """
    from jasper_jax.commands.export import export_onnx, export_run

    if (folder := user_path(recipe, "the recipe")).is_dir():
        export_onnx(folder, overrides or [], onnx=onnx, elsewhere=output is not None or all_dims)
        return
    if onnx:
        overrides = [*(overrides or []), "export.onnx=true"]
    export_run(load(recipe, overrides), optional_path(output), all_dims=all_dims)


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Everything: texts, vectors, negatives, stages, evaluation, export, report; complete parts are skipped.

    Example: `jasper run configs/quickstart.yaml`
    """
    from jasper_jax.commands.distil import distil

    join_processes(coordinator, processes, process)
    distil(load(recipe, overrides))


@app.command()
def encode(
    model: Annotated[str, typer.Argument(help="An exported folder, an asset's name, or a hub id.")],
    input: Annotated[Path, typer.Argument(help="One text per line, or JSONL with text; - reads standard input.")],
    output: Annotated[Path, typer.Argument(help="Output file of the vectors: .npy, [texts, dim].")],
    kind: Annotated[str, typer.Option(help="query or passage: which prompt precedes each text.")] = "passage",
    dim: Annotated[int | None, typer.Option(help="The dimension of the vectors; default: the model's own.")] = None,
    precision: Annotated[str, typer.Option(help="float32, int8, uint8, binary or ubinary.")] = "float32",
) -> None:
    """Encode texts with an exported model, in JAX.

    Example: `jasper encode runs/quickstart/export questions.txt questions.npy --kind query --dim 256`
    """
    from jasper_jax.commands.encode import encode_file

    encode_file(model, user_path(input), user_path(output, new=True), kind, dim, precision)


@app.command()
def assets() -> None:
    """List the named models and corpora, and whether they are on this machine.

    Example: `jasper assets`
    """
    from jasper_jax.commands.assets import list_assets

    list_assets()


def main() -> None:
    """Entry point: turns expected failures into one line and an exit code (2: input, 75: stopped and saved)."""
    run_to_end(app)
