"""The commands that score models: ``jasper evaluate`` and ``jasper mteb``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jasper_jax.cli.options import Coordinator, Process, Processes, join_processes, load, optional_path
from jasper_jax.runtime.errors import UserError

app = typer.Typer()


@app.command()
def evaluate(
    recipe: Annotated[str, typer.Argument(help="The recipe; or, with a test below, a model folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to the recipe as key=value; or further model folders.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(help="Score models: a CSV, JSONL or Parquet file of query and passage.")
    ] = None,
    beir: Annotated[list[str] | None, typer.Option(help="Score models: a folder in BEIR's format.")] = None,
    similarity: Annotated[
        list[str] | None, typer.Option(help="Score models: a file of query, passage and score, any numbers.")
    ] = None,
    classification: Annotated[
        list[str] | None, typer.Option(help="Score models: a file of text and label, by a linear probe.")
    ] = None,
    instructions: Annotated[
        str | None,
        typer.Option(help="Of models: 'default', or a YAML file of wordings of the prompts to repeat retrieval with."),
    ] = None,
    dim: Annotated[list[int] | None, typer.Option(help="Of models: the dimensions; default: each one's own.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Of models: a JSON file for the scores.")
    ] = None,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Score the teachers and the student before training and after each finished stage, in every dimension; or any
    models, by labels of your own.

    Example: `jasper evaluate configs/quickstart.yaml`

    Example: `jasper evaluate runs/quickstart/export all-MiniLM-L6-v2 --pairs labels.csv --dim 256`
    """
    from jasper_jax.commands.evaluate import evaluate_run
    from jasper_jax.commands.models import evaluate_models

    if pairs or beir or similarity or classification:
        evaluate_models(
            [recipe, *(overrides or [])],
            dim or [],
            optional_path(output),
            pairs=pairs or [],
            beir=beir or [],
            similarity=similarity or [],
            classification=classification or [],
            instructions=instructions,
        )
    elif dim or output or instructions:
        raise UserError(
            "--dim, --output and --instructions are for models; give --pairs, --beir, --similarity or --classification"
            " to score them by (in a recipe: evaluation.instructions)"
        )
    else:
        join_processes(coordinator, processes, process)
        evaluate_run(load(recipe, overrides))


@app.command()
def mteb(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, assets' names, hub ids; or a finished run's recipe.")
    ],
    benchmark: Annotated[
        str | None, typer.Option(help="'MTEB(eng, classic)' (the paper's 56 tasks), 'MTEB(eng, v2)' or another.")
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task, or several with commas between; of the benchmark if one is given.")
    ] = None,
    dim: Annotated[list[int] | None, typer.Option(help="The dimensions; default: the model's own.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A YAML or JSON file of prompts by task, type of task, query or document; e.g. STS: '...'"),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per batch of all devices.", min=1)] = None,
    backend: Annotated[str, typer.Option(help="jax or sentence-transformers.")] = "jax",
    teachers: Annotated[bool, typer.Option("--teachers", help="Score the recipe's teachers too.")] = False,
    name: Annotated[str | None, typer.Option(help="ORGANISATION/NAME in the results; default: the hub's.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder of the results, where what is finished is not run again; default: mteb in the run's folder for"
            " a recipe, else mteb-results.",
        ),
    ] = None,
) -> None:
    """Score models by tasks of MTEB (extra `mteb`), into MTEB's own folders; resumes where it stopped.

    Example: `jasper mteb runs/quickstart/export --benchmark "MTEB(eng, classic)" --dim 256`
    """
    from jasper_jax.commands.models import benchmark_models

    names = [part.strip() for given in tasks or [] for part in given.split(",") if part.strip()]
    benchmark_models(
        models,
        benchmark,
        names,
        dim or [],
        output,
        teachers=teachers,
        name=name,
        prompts=optional_path(prompts),
        backend=backend,
        batch_tokens=batch_tokens,
    )
