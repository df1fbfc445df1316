"""The commands, a function each."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import run_dir, stores_dir
from jasper_jax.runtime import processes
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import Interrupted, UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT, print_table
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jax.sharding import Mesh

    from jasper_jax.data.pairs import PairStore
    from jasper_jax.data.texts import TextStore
    from jasper_jax.evaluation.providers import Embedded
    from jasper_jax.evaluation.report import Evaluation
    from jasper_jax.run import Run
    from jasper_jax.teachers.models import TeacherModel


def _run(recipe: Recipe) -> Run:
    """The run of ``recipe``, which all processes share."""
    from jasper_jax.run import Run
    from jasper_jax.runtime.agreement import refuse_unlike, refuse_unshared
    from jasper_jax.runtime.program_cache import cache_programs

    processes.all_do(cache_programs)
    refuse_unlike(recipe.model_dump(mode="json"))
    refuse_unshared({"stores": stores_dir(recipe), "run_dir": run_dir(recipe)})
    return Run(recipe)


def _training_run(recipe: Recipe) -> tuple[Run, Mesh]:
    """A validated run and its mesh over the devices of all processes, before anything is written."""
    from jasper_jax.check import validate
    from jasper_jax.training.run_mesh import run_mesh

    if any(teacher.backend == "torch" for teacher in recipe.teachers):
        # Its model needs memory of the GPU of which JAX would take 75% when it makes the mesh.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run = _run(recipe)
    student, _ = validate(run)
    return run, run_mesh(recipe, student, run.vectors)


def check_recipe(recipe: Recipe) -> None:
    """``jasper check``."""
    from jasper_jax.check import report
    from jasper_jax.run import Run

    report(Run(recipe, describe=True), OUT)


def plan_recipe(recipe: Recipe, topologies: list[str]) -> None:
    """``jasper plan``."""
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

    from jasper_jax.check import validate
    from jasper_jax.planning.report import print_plan
    from jasper_jax.recipe.extras import missing_extras
    from jasper_jax.run import Run
    from jasper_jax.training.plan_embedding import embedding_table, plan_embedding
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


def embed_teachers(recipe: Recipe, process_index: int, process_count: int) -> None:
    """``jasper embed``; several processes may run it on one run folder at once."""
    from jasper_jax.check import validate

    _refuse_index(process_index, process_count)
    run = _run(recipe)
    validate(run)
    processes.first_does(run.run_folder.claim)
    with stop_flag() as stop, stop.immediately():
        timings = Timings(run.folder, process_index)
        _embed(run, timings, partial(_embed_share, run, timings, process_index, process_count))


def embed_teachers_on_ray(recipe: Recipe, address: str) -> None:
    """``jasper embed --ray``. ``address``: as of ``ray_cluster.connected``."""
    from jasper_jax.runtime.files import exclusive
    from jasper_jax.teachers.ray_cluster import RayCluster, connected, listed, needs, refuse_unlike_nodes, room

    with connected(address) as ray:  # before JAX has threads, since it forks
        from jasper_jax.check import validate

        needed = needs(recipe.ray, ray.nodes())
        refuse_unlike_nodes(ray, needed)
        run = _run(recipe)
        validate(run)
        say(f"Ray: room for {room(needed, ray.nodes())} workers of {listed(needed)}")
        run.run_folder.claim()
        with exclusive(stores_dir(recipe), "embed --ray", "stores"), stop_flag() as stop, stop.immediately():
            timings = Timings(run.folder)

            def embed(teachers: Sequence[TeacherModel], texts: TextStore) -> None:
                with timings.phase("embedding"):
                    run.vectors.embed_on(partial(RayCluster, ray, needed), teachers, texts)

            _embed(run, timings, embed)


def mine_negatives(recipe: Recipe, process_index: int, process_count: int) -> None:
    """``jasper mine``; several processes may run it on one run folder at once."""
    from jasper_jax.check import validate
    from jasper_jax.recipe.stages import mines

    _refuse_index(process_index, process_count)
    if not mines(recipe):
        raise UserError("stages: no stage asks for negatives; set negatives in one with stage: pairs")
    run = _run(recipe)
    validate(run)
    processes.first_does(run.run_folder.claim)
    with stop_flag() as stop, stop.immediately():
        texts = run.data.texts()
        _mine(run, texts, Timings(run.folder, process_index), process_index, process_count)


def _mine(run: Run, texts: TextStore, timings: Timings, process_index: int, process_count: int) -> None:
    from jasper_jax.teachers.mining import report

    with timings.phase("mining"):
        negatives = run.vectors.mine(texts, process_index=process_index, process_count=process_count)
    if negatives is None:
        say("negatives: this process's shards are complete, another process's are not yet.")
    elif processes.is_first():
        report(negatives, texts)


def _refuse_index(process_index: int, process_count: int) -> None:
    if process_index >= process_count:
        raise UserError(f"--process-index {process_index}: allowed are 0 to {process_count - 1}")


def _embed(
    run: Run,
    timings: Timings,
    embed: Callable[[Sequence[TeacherModel], TextStore], None],
    *,
    training: bool = False,
) -> tuple[TextStore | None, PairStore | None]:
    """Build the stores of texts and images; ``embed`` fills those of the teachers that are embedded."""
    from jasper_jax.check import advice_for_few_texts, refuse_large_batches

    texts = pairs = None
    if run.recipe.texts is not None:
        with timings.phase("texts"):
            texts = run.data.texts()
        if training:
            refuse_large_batches(run.stages, texts.size("train"), "training texts", "texts")
            refuse_large_batches(run.stages, len(texts.pairs["train"]), "training pairs", "pairs")
            for line in advice_for_few_texts(run):
                say(line)
    if run.trains_on_images:
        with timings.phase("images"):
            pairs = run.data.pairs()
        if training:
            refuse_large_batches(run.stages, pairs.size("train"), "training pairs", "images")
    if not run.needs_vectors:
        return texts, pairs
    assert texts is not None
    cached = [teacher for teacher in run.teachers if teacher.settings.mode == "cached"]
    for teacher in cached:
        if teacher.settings.model is None:
            run.vectors.open(teacher, texts)  # imported vectors must exist
    embed([teacher for teacher in cached if teacher.settings.model is not None], texts)
    return texts, pairs


def _embed_share(
    run: Run,
    timings: Timings,
    process_index: int,
    process_count: int,
    teachers: Sequence[TeacherModel],
    texts: TextStore,
) -> None:
    """The share of this process, by its number, in the vectors of each teacher."""
    for teacher in teachers:
        with timings.phase(f"embedding: {teacher.name}"):
            store = run.vectors.embed(teacher, texts, process_index=process_index, process_count=process_count)
        if store is None:
            say(f"{teacher.name}: this process's shards are complete, another process's are not yet.")


def train_stages(recipe: Recipe) -> None:
    """``jasper train``."""
    run, mesh = _training_run(recipe)
    with run.run_folder.alone("train"), stop_flag() as stop:
        timings = Timings(run.folder)
        with stop.immediately():
            texts = None if recipe.texts is None else run.data.texts()
            pairs = run.data.pairs() if run.trains_on_images else None
        _train(run, mesh, texts, pairs, timings, stop)


def _train(
    run: Run,
    mesh: Mesh,
    texts: TextStore | None,
    pairs: PairStore | None,
    timings: Timings,
    stop: Callable[[int], bool],
) -> None:
    from jasper_jax.training.loop import train

    view = None if texts is None else run.vectors.view(texts)
    negatives = None if texts is None else run.vectors.negatives(texts)
    folder, student = run.run_folder, run.student
    if not train(folder, student, mesh, texts, view, timings, stop, pairs, negatives, progress=run.progress):
        raise Interrupted


def evaluate_run(recipe: Recipe) -> None:
    """``jasper evaluate``: all processes embed, then the first scores and the others end."""
    run = _run(recipe)
    timings = Timings(run.folder)
    with run.run_folder.alone("evaluate"):
        with stop_flag() as stop:
            with stop.immediately():
                embedded = _embed_tests(run, timings)
            if stop():
                raise Interrupted
        if processes.go_on_alone():
            with stop_flag() as stop, stop.immediately():
                _evaluate(run, embedded, timings)
                _report(run)


def _embed_tests(run: Run, timings: Timings) -> Embedded:
    from jasper_jax.evaluation.providers import embed_tests

    with timings.phase("evaluation"):
        return embed_tests(run.run_folder, run.data, run.vectors, run.student)


def _evaluate(run: Run, embedded: Embedded, timings: Timings) -> None:
    """Score the run; the results of other data sets stay in ``evaluations/``."""
    from jasper_jax.evaluation.asymmetric import share_kept
    from jasper_jax.evaluation.by_text import FILE
    from jasper_jax.evaluation.instructions import instruction_table
    from jasper_jax.evaluation.precisions import precision_table
    from jasper_jax.evaluation.providers import evaluate
    from jasper_jax.evaluation.report import (
        beside_teachers,
        better_without_training,
        console_table,
        ndcg10,
        retrieval_tests,
        to_json,
    )
    from jasper_jax.evaluation.results import results_path

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


def export_run(recipe: Recipe, output: Path | None, *, all_dims: bool = False) -> None:
    """``jasper export``. ``all_dims``: a folder in ``output`` for each dimension."""
    from jasper_jax.check import served_dims

    run = _run(recipe)
    with run.run_folder.alone("export"), stop_flag() as stop, stop.immediately():
        timings = Timings(run.folder)
        if not all_dims:
            _export(run, timings, output)
            return
        for dim in served_dims(run):
            export = recipe.export.model_copy(update={"dim": dim})
            one = type(run)(recipe.model_copy(update={"export": export}), progress=run.progress)
            _export(one, timings, (output or run.folder / "exports") / str(dim))


def _export(run: Run, timings: Timings, output: Path | None) -> None:
    from jasper_jax.export.sentence_transformers import export

    with timings.phase("export"):
        folder, check = export(run.run_folder, run.student, run.vectors, output or run.folder / "export")
    OUT.print(bold(str(folder), f": {check}"))


def run_all(recipe: Recipe) -> None:
    """``jasper run``: texts, vectors, negatives, stages, evaluation, export, report. What the first process does last,
    from scoring on, it does when the others have ended."""
    from jasper_jax.evaluation.results import is_evaluated
    from jasper_jax.export.sentence_transformers import refuse_foreign
    from jasper_jax.recipe.stages import mines

    run, mesh = _training_run(recipe)
    with run.run_folder.alone("run"):
        with stop_flag() as stop:
            refuse_foreign(run.folder / "export")
            timings = Timings(run.folder)
            with stop.immediately():
                texts, pairs = _embed(run, timings, partial(_embed_share, run, timings, 0, 1), training=True)
                if mines(recipe) and texts is not None:
                    _mine(run, texts, timings, 0, 1)
            _train(run, mesh, texts, pairs, timings, stop)
            with stop.immediately():
                known = processes.first_says(lambda: is_evaluated(run.run_folder))
                embedded = None if known else _embed_tests(run, timings)
            if stop():
                raise Interrupted
        if processes.go_on_alone():
            with stop_flag() as stop, stop.immediately():
                _finish(run, embedded, timings)
            print_table(timings.table(), OUT)


def _finish(run: Run, embedded: Embedded | None, timings: Timings) -> None:
    """Evaluate, export and report, unless an earlier command did so after the last stage. ``embedded``: None if it did
    the first."""
    from jasper_jax.export.sentence_transformers import is_exported
    from jasper_jax.reporting.write import REPORT

    if embedded is None:
        say("evaluation.json is of this recipe and these stages; jasper evaluate makes it again.")
    else:
        _evaluate(run, embedded, timings)
    exported = embedded is None and is_exported(run.run_folder, run.folder / "export")
    if exported:
        say(f"{run.folder / 'export'} is of this recipe; jasper export makes it again.")
    else:
        _export(run, timings, None)
    if not exported or not (run.folder / REPORT).is_file():
        _report(run)


def _report(run: Run) -> None:
    from jasper_jax.reporting.page import has_packages
    from jasper_jax.reporting.write import REPORT, write_report

    if not has_packages():
        say("No report: pip install 'jasper-jax[report]'")
        return
    write_report(run.folder, run.folder / REPORT)
    OUT.print(bold(str(run.folder / REPORT), ": the report, which a browser opens"))


def list_assets() -> None:
    """``jasper assets``."""
    from rich.table import Table

    from jasper_jax.assets.cache import is_cached
    from jasper_jax.assets.catalogue import CATALOGUE

    table = Table("name", "kind", "MB", "licence", "from", "here")
    for asset in CATALOGUE.values():
        here = "yes" if is_cached(asset) else ""
        table.add_row(asset.name, asset.kind, f"{asset.size / 1e6:,.0f}", asset.licence, asset.source, here)
    print_table(table, OUT)
