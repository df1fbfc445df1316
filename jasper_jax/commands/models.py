"""``jasper evaluate MODEL...`` and ``jasper mteb``: models, by labels or by MTEB."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import refuse_blocked
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.outputs import refuse_output
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.tables import OUT, print_table


def evaluate_models(models: Sequence[str], dims: Sequence[int], output: Path | None, **tests: Any) -> None:
    """``jasper evaluate MODEL...``: a table of the models, and a file of their scores if asked. ``tests``: the
    arguments of :func:`~jasper_jax.evaluation.folders.asked_of`."""
    from jasper_jax.evaluation.evaluation import to_json
    from jasper_jax.evaluation.folders import asked_of, evaluate_folders
    from jasper_jax.evaluation.instructions import instruction_table
    from jasper_jax.evaluation.tables import console_table
    from jasper_jax.recipe.places import files_read
    from jasper_jax.runtime.program_cache import cache_programs

    asked = asked_of(**tests)
    if output is not None:
        refuse_output(output, "a .json file", [*files_read(asked), *(user_path(model, "model") for model in models)])
    cache_programs()
    evaluation = evaluate_folders(models, asked, dims)
    print_table(console_table(evaluation), OUT)
    if evaluation.instructions:
        print_table(instruction_table(evaluation.instructions), OUT)
    if output is not None:
        to_json(evaluation, output)


def benchmark_models(
    models: Sequence[str],
    benchmark: str | None,
    tasks: Sequence[str],
    dims: Sequence[int],
    output: Path | None,
    *,
    teachers: bool,
    name: str | None,
    prompts: Path | None,
    backend: str,
    batch_tokens: int | None,
) -> None:
    """``jasper mteb``: a table of all models whose results are in ``output``; UserError if a task has no score."""
    if missing := [package for package in ("mteb", "sentence_transformers") if find_spec(package) is None]:
        raise UserError(f"jasper mteb needs {' and '.join(missing)}: pip install 'jasper-jax[mteb]'")
    from jasper_jax.benchmarks.candidates import candidates, results_folder
    from jasper_jax.benchmarks.model_meta import model_name
    from jasper_jax.benchmarks.prompts import read_prompts_file
    from jasper_jax.benchmarks.run import run_benchmark
    from jasper_jax.benchmarks.summary import summary_table
    from jasper_jax.benchmarks.tasks import select_tasks
    from jasper_jax.runtime.program_cache import cache_programs

    if name is not None and len(models) > 1:
        raise UserError(f"--name {name}: is the name of one model, and {len(models)} are given")
    results = results_folder(models, output)
    refuse_blocked(results, "give another folder")
    found = candidates(models, teachers)
    chosen = select_tasks(benchmark, tasks)
    given = {} if prompts is None else read_prompts_file(prompts)
    folders = [candidate.folder() for candidate in found]
    cache_programs()
    failed: dict[str, str] = {}
    done = None
    with stop_flag() as stop, stop.immediately():
        for candidate, folder in zip(found, folders):
            teacher = candidate.is_teacher
            done = run_benchmark(
                folder,
                model_name(candidate.source, None if teacher else name),
                chosen,
                results,
                dims=dims,
                beside=teacher,
                prompts={**candidate.prompts, **given},
                backend=candidate.backend or backend,
                batch_tokens=None if candidate.backend else batch_tokens,
            )
            failed |= done.failed
    assert done is not None
    if done.scores.models:
        print_table(summary_table(done.scores), OUT)
        OUT.print(f"{results / 'results'}: the results; {done.meta}: a ModelMeta", markup=False, highlight=False)
    if failed:
        reasons = first_three([f"{task}: {reason}" for task, reason in failed.items()])
        raise UserError(
            f"{len(failed)} of {len(chosen)} tasks have no score: {reasons}; the same command tries them again"
        )
