"""The commands on texts, vectors and models: encode a file, score models by labels or by MTEB, export the texts, import
and verify teachers' vectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import load_export, stores_dir
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import refuse_blocked, write_array, write_atomic
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.outputs import refuse_output
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT, print_table
from jasper_jax.runtime.text_files import content_suffix, lines_of, numbered_lines


def encode_file(model: str, source: Path, output: Path, kind: str, dim: int | None, precision: str) -> None:
    """``jasper encode``: one text per line, or the ``text`` of each JSONL object, to a ``.npy`` of vectors."""
    from jasper_jax.assets.models import resolve_model
    from jasper_jax.checkpoints.export_marker import refuse_damaged
    from jasper_jax.embedder import Embedder
    from jasper_jax.encoders.prompts import KINDS
    from jasper_jax.encoders.quantization import quantizer
    from jasper_jax.runtime.program_cache import cache_programs

    if kind not in KINDS:
        raise UserError(f"--kind {kind}: allowed are {' and '.join(KINDS)}")
    if output.suffix != ".npy":
        raise UserError(f"{output}: expected a file name that ends in .npy")
    if str(source) != "-" and not source.is_file():
        raise UserError(
            f"{source}: no such file; expected a text file with one text per line, JSONL, or - for standard input"
        )
    refuse_output(output, "a .npy file", [] if str(source) == "-" else [source])
    texts, kinds = _read_texts(source, kind)
    if not any(text.strip() for text in texts):
        raise UserError(f"{source}: holds no text; expected one text per line")
    if empty := sum(not text.strip() for text in texts):
        say(f"{source}: {empty:,} of {len(texts):,} lines are empty; their vectors are meaningless.")
    folder = resolve_model(model)
    refuse_damaged(folder)
    cache_programs()
    embedder = Embedder.load(folder)
    quantize = quantizer(precision, dim or embedder.default_dim, embedder.ranges)
    vectors = embedder.encode(texts, kind=kinds, dim=dim, show_progress=True)
    if embedder.truncated:
        limit = f"{embedder.max_length} tokens"
        say(f"{embedder.truncated:,} of {len(texts):,} texts are longer than {limit} and were truncated.")
    if bad := int(np.count_nonzero(~np.isfinite(vectors).all(axis=1))):
        raise UserError(f"{model}: {bad:,} of {len(vectors):,} vectors are not finite; its weights are damaged")
    write_array(output, quantize(vectors))
    OUT.print(f"{output}: {len(vectors):,} {precision} vectors of {vectors.shape[1]} dimensions")


def evaluate_models(models: Sequence[str], dims: Sequence[int], output: Path | None, **tests: Any) -> None:
    """``jasper evaluate MODEL...``: a table of the models, and a file of their scores if asked. ``tests``: the
    arguments of :func:`~jasper_jax.evaluation.folders.asked_of`."""
    from jasper_jax.evaluation.folders import asked_of, evaluate_folders
    from jasper_jax.evaluation.instructions import instruction_table
    from jasper_jax.evaluation.report import console_table, to_json
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


def _read_texts(source: Path, kind: str) -> tuple[list[str], list[str]]:
    """The texts of a file and the kind of each: ``kind``, unless an object of a JSONL file says its own."""
    from jasper_jax.data.sources import jsonl_rows, strings
    from jasper_jax.encoders.prompts import KINDS

    if str(source) == "-":
        texts = lines_of(sys.stdin.buffer.read(), "standard input")
    elif content_suffix(source) != ".jsonl":
        texts = [line for _, line in numbered_lines(source)]
    else:
        texts, kinds = [], []
        for row in jsonl_rows(source):
            given = strings(row.values["text"], "text", row.where) if "text" in row.values else []
            if len(given) != 1 or row.values.get("kind", kind) not in KINDS:
                raise UserError(
                    f'{row.where}: expected {{"text": "..."}}, with "kind": "query" or "passage" if it differs from'
                    f" --kind; the keys are {', '.join(map(str, row.values)) or 'none'}"
                )
            texts += given
            kinds.append(row.values.get("kind", kind))
        return texts, kinds
    return texts, [kind] * len(texts)


def verify_vectors(recipe: Recipe, sample: int) -> None:
    """``jasper vectors verify``."""
    from jasper_jax.data.texts import TextStore
    from jasper_jax.run import Run
    from jasper_jax.runtime.program_cache import cache_programs
    from jasper_jax.teachers.vector_check import dtype_error, verify_store

    cache_programs()
    run = Run(recipe)
    texts = TextStore.open(run.data.text_folder)
    texts.verify()
    OUT.print(f"{run.data.text_folder}: complete, {len(texts.shards)} shards")
    for teacher in run.teachers:
        if teacher.settings.mode == "online":
            continue
        folder = run.vectors.folder(teacher)
        summary = verify_store(folder, texts, progress=True)
        OUT.print(
            f"{folder}: complete, {summary.vectors:,} vectors in {summary.shards} shards, norms"
            f" {summary.smallest_norm:.4f} to {summary.largest_norm:.4f}, {summary.clipped:,} values clipped"
        )
        if sample and teacher.settings.model is not None:
            store = run.vectors.open(teacher, texts)
            error = dtype_error(store, texts, teacher.encoder(), sample=sample)
            OUT.print(
                f"{folder}: {store.dtype} changes similarities of {error.texts} texts by {error.mean:.2e} on average,"
                f" {error.largest:.2e} at most"
            )


def export_texts(recipe: Recipe, output: Path, recipe_file: Path) -> None:
    """``jasper texts export``: every text that an imported teacher needs a vector of, as JSONL."""
    from jasper_jax.data.text import digest
    from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
    from jasper_jax.recipe.places import files_read
    from jasper_jax.run import Run

    refuse_output(output, "a .jsonl file", [recipe_file, *files_read(recipe)])
    if recipe.texts is None:
        raise UserError("texts: the recipe has none, so there is nothing to export")
    run = Run(recipe)
    with run.run_folder.alone("texts export"), stop_flag() as stop, stop.immediately():
        store = run.data.texts()
        tests = TextTests(recipe.evaluation, store)
    lines: dict[bytes, str] = {}

    def add(text: str, kind: str) -> None:
        row = json.dumps({"text": text, "kind": kind}, ensure_ascii=False)
        lines.setdefault(digest(text, kind), row)

    for shard in store.shards:
        for row in store.read_shard(shard):
            add(row.text, row.kind)
    own = len(lines)
    for name, (texts, kinds) in tests.lists.items():
        for text, kind in zip(texts, kinds) if name != HELD_OUT else ():
            add(text, kind)
    write_atomic(output, "".join(f"{line}\n" for line in lines.values()))
    more = f" and {len(lines) - own:,} more of the tests" if len(lines) > own else ""
    OUT.print(f"{output}: {own:,} texts of {run.data.text_folder}{more}")


def import_teacher(recipe: Recipe, name: str, files: list[Path]) -> None:
    """``jasper vectors import``."""
    from jasper_jax.evaluation.teachers import import_test_vectors
    from jasper_jax.evaluation.text_tests import TextTests
    from jasper_jax.run import Run
    from jasper_jax.teachers.vector_import import import_vectors

    run = Run(recipe)
    teachers = {teacher.name: teacher for teacher in run.teachers}
    if name not in teachers:
        raise UserError(f"teacher {name!r} is not in the recipe; teachers are {', '.join(teachers)}")
    teacher = teachers[name]
    if teacher.settings.model is not None:
        model = teacher.settings.model
        raise UserError(f"teachers.{name}: jasper embed computes its vectors with model {model}; remove model")
    with run.run_folder.alone("vectors import"), stop_flag() as stop, stop.immediately():
        folder, texts = run.vectors.folder(teacher), run.data.texts()
        summary = import_vectors(files, texts, folder, teacher.spec)
        OUT.print(f"{folder}: {summary}")
        tests = TextTests(recipe.evaluation, texts)
        for line in import_test_vectors(files, tests, teacher, stores_dir(recipe) / "evaluation"):
            say(line)
