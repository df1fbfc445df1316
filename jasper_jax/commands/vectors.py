"""``jasper vectors``: verify and import teachers' vectors."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import stores_dir
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT


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
