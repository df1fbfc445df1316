"""``jasper embed`` and ``jasper mine``: the stores of texts, images, teachers' vectors and negatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from jasper_jax.commands.opening import open_run, refuse_index
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import stores_dir
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.timings import Timings

if TYPE_CHECKING:  # each command imports what it needs, so that it starts quickly
    from jasper_jax.data.pairs import PairStore
    from jasper_jax.data.texts import TextStore
    from jasper_jax.run import Run
    from jasper_jax.teachers.models import TeacherModel


def embed_teachers(recipe: Recipe, process_index: int, process_count: int) -> None:
    """``jasper embed``; several processes may run it on one run folder at once."""
    from jasper_jax.commands.validation import validate

    refuse_index(process_index, process_count)
    run = open_run(recipe)
    validate(run)
    processes.first_does(run.run_folder.claim)
    with stop_flag() as stop, stop.immediately():
        timings = Timings(run.folder, process_index)
        fill_stores(run, timings, partial(embed_share, run, timings, process_index, process_count))


def embed_teachers_on_ray(recipe: Recipe, address: str) -> None:
    """``jasper embed --ray``. ``address``: as of ``ray_connection.connected``."""
    from jasper_jax.runtime.files import exclusive
    from jasper_jax.teachers.ray_cluster import RayCluster, listed, needs, refuse_unlike_nodes, room
    from jasper_jax.teachers.ray_connection import connected

    with connected(address) as ray:  # before JAX has threads, since it forks
        from jasper_jax.commands.validation import validate

        needed = needs(recipe.ray, ray.nodes())
        refuse_unlike_nodes(ray, needed)
        run = open_run(recipe)
        validate(run)
        say(f"Ray: room for {room(needed, ray.nodes())} workers of {listed(needed)}")
        run.run_folder.claim()
        with exclusive(stores_dir(recipe), "embed --ray", "stores"), stop_flag() as stop, stop.immediately():
            timings = Timings(run.folder)

            def embed(teachers: Sequence[TeacherModel], texts: TextStore) -> None:
                with timings.phase("embedding"):
                    run.vectors.embed_on(partial(RayCluster, ray, needed), teachers, texts)

            fill_stores(run, timings, embed)


def fill_stores(
    run: Run,
    timings: Timings,
    embed: Callable[[Sequence[TeacherModel], TextStore], None],
    *,
    training: bool = False,
) -> tuple[TextStore | None, PairStore | None]:
    """Build the stores of texts and images; ``embed`` fills those of the teachers that are embedded."""
    from jasper_jax.commands.amounts import advice_for_few_texts
    from jasper_jax.commands.validation import refuse_large_batches

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


def embed_share(
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


def mine_negatives(recipe: Recipe, process_index: int, process_count: int) -> None:
    """``jasper mine``; several processes may run it on one run folder at once."""
    from jasper_jax.commands.validation import validate
    from jasper_jax.recipe.stage_data import mines

    refuse_index(process_index, process_count)
    if not mines(recipe):
        raise UserError("stages: no stage asks for negatives; set negatives in one with stage: pairs")
    run = open_run(recipe)
    validate(run)
    processes.first_does(run.run_folder.claim)
    with stop_flag() as stop, stop.immediately():
        texts = run.data.texts()
        mine(run, texts, Timings(run.folder, process_index), process_index, process_count)


def mine(run: Run, texts: TextStore, timings: Timings, process_index: int, process_count: int) -> None:
    """The share of this process in the hard negatives; the first that finds all complete reports them."""
    from jasper_jax.teachers.mining import report

    with timings.phase("mining"):
        negatives = run.vectors.mine(texts, process_index=process_index, process_count=process_count)
    if negatives is None:
        say("negatives: this process's shards are complete, another process's are not yet.")
    elif processes.is_first():
        report(negatives, texts)
