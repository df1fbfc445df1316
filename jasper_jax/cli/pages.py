"""The commands that make pages of finished work: ``jasper report`` and ``jasper compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path

app = typer.Typer()


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run's folder, or its recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe as key=value.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: report.html in the run.")
    ] = None,
) -> None:
    """Write a run's report, one HTML file that opens anywhere (extra `report`): quality, queries gained and lost,
    agreement, losses, time. `jasper run` writes it too.

    Example: `jasper report runs/quickstart`
    """
    from jasper_jax.reporting.run_files import READ
    from jasper_jax.reporting.write import REPORT, write_report
    from jasper_jax.runtime.outputs import refuse_output
    from jasper_jax.runtime.tables import OUT

    folder = _folder(run, overrides or [])
    path = folder / REPORT if output is None else user_path(output, new=True)
    refuse_output(path, "an .html file", [folder / name for name in READ])
    write_report(folder, path)
    OUT.print(str(path), markup=False, highlight=False)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs: folders, or recipes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("compare.html"),
) -> None:
    """Put several runs on one HTML page (extra `report`); the first is what the others are compared with.

    Example: `jasper compare runs/quickstart runs/quickstart_pairs -o compare.html`
    """
    from jasper_jax.reporting.run_files import READ
    from jasper_jax.reporting.write import write_comparison
    from jasper_jax.runtime.outputs import refuse_output
    from jasper_jax.runtime.tables import OUT

    if len(runs) < 2:
        raise UserError(f"compare: expected at least two runs, got {len(runs)}; jasper report writes a page of one")
    path = user_path(output, new=True)
    folders = [_folder(run, []) for run in runs]
    refuse_output(path, "an .html file", [folder / name for folder in folders for name in READ])
    write_comparison(folders, path)
    OUT.print(str(path), markup=False, highlight=False)


def _folder(run: str, overrides: list[str]) -> Path:
    """The folder ``run``, or that of the recipe ``run``."""
    from jasper_jax.recipe.load import load_recipe, run_dir

    folder = user_path(run, "the run")
    if not folder.is_dir():
        return run_dir(load_recipe(run, overrides))
    if overrides:
        raise UserError(f"{run}: is a folder, and {overrides[0]!r} changes a recipe; give the recipe, or leave it out")
    return folder
