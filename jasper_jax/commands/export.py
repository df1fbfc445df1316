"""``jasper export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jasper_jax.commands.opening import open_run
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_export
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.tables import OUT
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jasper_jax.run import Run


def export_run(recipe: Recipe, output: Path | None, *, all_dims: bool = False) -> None:
    """``jasper export``. ``all_dims``: a folder in ``output`` for each dimension."""
    from jasper_jax.commands.validation import served_dims

    run = open_run(recipe)
    with run.run_folder.alone("export"), stop_flag() as stop, stop.immediately():
        timings = Timings(run.folder)
        if not all_dims:
            export_to(run, timings, output)
            return
        for dim in served_dims(run):
            export = recipe.export.model_copy(update={"dim": dim})
            one = type(run)(recipe.model_copy(update={"export": export}), progress=run.progress)
            export_to(one, timings, (output or run.folder / "exports") / str(dim))


def export_to(run: Run, timings: Timings, output: Path | None) -> None:
    """Write the student into the folder ``output``; None: ``export`` in the run."""
    from jasper_jax.export.sentence_transformers import export

    with timings.phase("export"):
        folder, check = export(run.run_folder, run.student, run.vectors, output or run.folder / "export")
    OUT.print(bold(str(folder), f": {check}"))


def export_onnx(folder: Path, overrides: list[str], *, onnx: bool, elsewhere: bool) -> None:
    """``jasper export FOLDER --onnx``: ONNX files for an exported folder, without its run."""
    from jasper_jax.export.onnx_folder import add_onnx

    if not onnx:
        raise UserError(f"{folder}: is a folder; expected a recipe, or --onnx to add ONNX files to an exported folder")
    if elsewhere:
        raise UserError(
            f"{folder}: is a folder, whose ONNX files are written into it; leave out --output and --all-dims"
        )
    settings = load_export(overrides)
    with stop_flag() as stop, stop.immediately():
        OUT.print(bold(str(folder), f": {add_onnx(folder, settings)}"))
