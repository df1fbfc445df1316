"""``jasper evaluate`` of a run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from jasper_jax.commands.opening import open_run
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime import processes
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT, print_table
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jasper_jax.evaluation.evaluation import Evaluation
    from jasper_jax.evaluation.providers import Embedded
    from jasper_jax.run import Run


def evaluate_run(recipe: Recipe) -> None:
    """``jasper evaluate``: all processes embed, then the first scores and the others end."""
    run = open_run(recipe)
    timings = Timings(run.folder)
    with run.run_folder.alone("evaluate"):
        with stop_flag() as stop:
            with stop.immediately():
                embedded = embed_tests_of(run, timings)
            if stop():
                raise Interrupted
        if processes.go_on_alone():
            with stop_flag() as stop, stop.immediately():
                score(run, embedded, timings)
                report_run(run)


def embed_tests_of(run: Run, timings: Timings) -> Embedded:
    """The vectors of the tests, of which all processes compute a share."""
    from jasper_jax.evaluation.providers import embed_tests

    with timings.phase("evaluation"):
        return embed_tests(run.run_folder, run.data, run.vectors, run.student)


def score(run: Run, embedded: Embedded, timings: Timings) -> None:
    """Score the run; the results of other data sets stay in ``evaluations/``."""
    from jasper_jax.evaluation.asymmetric import share_kept
    from jasper_jax.evaluation.by_text import FILE
    from jasper_jax.evaluation.evaluation import (
        beside_teachers,
        better_without_training,
        ndcg10,
        retrieval_tests,
        to_json,
    )
    from jasper_jax.evaluation.instructions import instruction_table
    from jasper_jax.evaluation.precisions import precision_table
    from jasper_jax.evaluation.providers import evaluate
    from jasper_jax.evaluation.results import results_path
    from jasper_jax.evaluation.tables import console_table

    plots = importlib.util.find_spec("matplotlib") is not None
    with timings.phase("evaluation"):
        sheet = run.folder / "contact-sheet.png" if plots else None
        evaluation = evaluate(embedded, sheet, run.folder / FILE)
        path = results_path(run.folder, evaluation)
        to_json(evaluation, path)
        to_json(evaluation, run.folder / "evaluation.json")
        if plots:
            _plot(run.folder, evaluation, path.with_suffix(".png"))
        else:
            say("No plots: pip install 'jasper-jax[plot]'")
    for line in (*beside_teachers(evaluation), *share_kept(evaluation)):
        say(line)
    print_table(console_table(evaluation), OUT)
    if evaluation.precisions:
        print_table(precision_table(evaluation.precisions), OUT)
    if evaluation.instructions:
        print_table(instruction_table(evaluation.instructions), OUT)
    names = retrieval_tests(evaluation)
    for student, free in better_without_training(evaluation):
        say(
            f"{student.head}, {student.dim} dimensions: nDCG@10 {ndcg10(student, names):.3f}. {free.provider},"
            f" {free.dim} dimensions, needs no training, costs no more, and has {ndcg10(free, names):.3f}."
        )


def _plot(folder: Path, evaluation: Evaluation, kept: Path) -> None:
    from jasper_jax.evaluation.plots import plot_dimensions, plot_training
    from jasper_jax.evaluation.precision_plot import plot_precisions

    if (folder / "metrics.jsonl").is_file():
        plot_training(folder / "metrics.jsonl", folder / "training.png")
    if any(row.retrieval and row.stage for row in evaluation.rows):
        plot_dimensions(evaluation, folder / "dimensions.png")
        write_atomic(kept, (folder / "dimensions.png").read_bytes())
    if evaluation.precisions:
        plot_precisions(evaluation.precisions, folder / "precisions.png")


def report_run(run: Run) -> None:
    """Write the run's page for a browser."""
    from jasper_jax.reporting.page import has_packages
    from jasper_jax.reporting.write import REPORT, write_report

    if not has_packages():
        say("No report: pip install 'jasper-jax[report]'")
        return
    write_report(run.folder, run.folder / REPORT)
    OUT.print(bold(str(run.folder / REPORT), ": the report, which a browser opens"))
