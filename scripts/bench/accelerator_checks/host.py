"""What happens around the steps: loading batches, saving, embedding, a torch model on the same device."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from train_bench.world import Ours, World, in_turn, open_world

from accelerator_checks.check import Outcome, Skip, scratch_folder
from accelerator_checks.world import LENGTH, STEPS, recipe_file

NO_MARK = "no mark on cpu: the host's work takes the cores that compute"


def _world(size: str) -> World:
    """A run folder with texts and vectors, and its stage."""
    from jasper_jax.commands.stores import embed_teachers
    from jasper_jax.recipe.load import load_recipe

    recipe = load_recipe(recipe_file(size), [])
    embed_teachers(recipe, 0, 1)
    return open_world(Path(str(recipe.run_dir)), 0, scratch_folder() / f"counts-{size}")


def idle(size: str) -> Outcome:
    """Steps whose batches lie ready against steps whose batches are read, tokenised and packed meanwhile."""
    world = _world(size)
    ours, batches = Ours(world), world.batches
    ready = [batches.load(number) for number in range(STEPS[size])]
    for number in world.one_of_each_shape():
        ours.step(ready[number])

    def train(source: Any) -> None:
        before = None
        for batch in source:
            values = ours.begin(batch)
            if before:
                jax.device_get(before)  # a step late, as in the train loop
            before = values
        jax.block_until_ready(before)

    work = {"ready": lambda: train(ready), "loaded": lambda: train(batches.iterate(0))}
    times = {name: statistics.median(found) for name, found in in_turn(work, 2).items()}
    share = 1 - times["ready"] / times["loaded"]
    on_cpu = jax.default_backend() == "cpu"
    values = {"idle": share, "steps": len(ready), "seconds_ready": times["ready"], "seconds_loaded": times["loaded"]}
    return Outcome(on_cpu or share < 0.03, {**values, **({"no_mark": NO_MARK} if on_cpu else {})})


def bytes_in_use() -> int:
    """By the device's allocator; where it does not count, the sum of live arrays."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("bytes_in_use" in one for one in stats):
        return sum(one["bytes_in_use"] for one in stats)
    return sum(array.nbytes for array in jax.live_arrays())


def checkpoint_memory(size: str) -> Outcome:
    """Memory before a save within a stage, right after it was started, and ten steps after it ended."""
    from jasper_jax.checkpoints.checkpoint import Position

    world = _world(size)
    ours, batch = Ours(world), world.batches.load(0)
    for _ in range(3):
        ours.step(batch)
    before = bytes_in_use()
    checkpoints = world.run.run_folder.checkpoints()
    began = time.perf_counter()
    saved = {"trained": ours.trained, "optimizer": ours.state}
    checkpoints.save_step(Position(0, 1), saved, {"recipe": world.run.recipe.model_dump(mode="json")})
    del saved
    blocked, during = time.perf_counter() - began, bytes_in_use()
    checkpoints.wait()
    written = time.perf_counter() - began
    for _ in range(10):
        ours.step(batch)
        checkpoints.settle()
    after = bytes_in_use()
    values = {"before": before, "during": during, "ten_steps_after": after, "after_over_before": after / before}
    values |= {"seconds_blocked": blocked, "seconds_to_written": written}
    return Outcome(abs(after / before - 1) <= 0.05, values)


def embedder(size: str) -> Outcome:
    """Tokens/s of the student's shape as a teacher, at three lengths; and what the ends of shards cost."""
    from jasper_jax.embedder import Embedder
    from jasper_jax.recipe.load import load_recipe
    from jasper_jax.run import Run
    from jasper_jax.student.start import make_student, make_tokenizer
    from tests.tiny import sentences

    recipe = load_recipe(recipe_file(size), [])
    run = Run(recipe, progress=False)
    student = make_student(recipe, run.teacher_dim, run.student)
    params = jax.jit(student.encoder.init)(jax.random.key(0))
    dtype, full = student.compute_dtype, LENGTH[size]
    model = Embedder(student.encoder, params, make_tokenizer(student, run.student), student.pooling, dtype=dtype)
    words = " ".join(sentences(500)).split()
    number, rates, finite = (1024 if size == "full" else 8), {}, True
    rng = np.random.default_rng(0)

    def texts(length: int, count: int) -> list[str]:
        return [" ".join(rng.choice(words, rng.integers(length // 2, length - 2))) for _ in range(count)]

    for length in (full // 8, full // 2, full):
        some = texts(length, number)
        model.encode(some)  # compiles
        counted, began = model.tokens, time.perf_counter()
        finite &= bool(np.isfinite(model.encode(some)).all())
        rates[str(length)] = (model.tokens - counted) / (time.perf_counter() - began)
    shard = 2 * number
    shards = [texts(full // 2, shard) for _ in range(2)]
    work = {
        "apart": lambda: [model.encode(one) for one in shards],
        "whole": lambda: model.encode([*shards[0], *shards[1]]),
    }
    for run_once in work.values():
        run_once()
    times = {name: min(found) for name, found in in_turn(work, 2).items()}
    share = 1 - times["whole"] / times["apart"]
    on_cpu = jax.default_backend() == "cpu"
    values = {"tokens_per_second": rates, "idle_between_shards": share, "shard_texts": shard, "finite": finite}
    return Outcome(finite and (on_cpu or share < 0.05), {**values, **({"no_mark": NO_MARK} if on_cpu else {})})


def torch_teacher(size: str) -> Outcome:
    """A teacher through sentence-transformers, loaded after JAX has taken its memory of the device."""
    for name in ("torch", "sentence_transformers"):
        if importlib.util.find_spec(name) is None:
            raise Skip(f"{name} is not installed: pip install -e '.[export]'")
    import torch

    from jasper_jax.embedder import Embedder
    from jasper_jax.recipe.config import Teacher
    from jasper_jax.teachers.torch_teacher import TorchEncoder
    from tests.tiny import sentences

    folder = recipe_file(size).parent / "teacher"
    jax.block_until_ready(jax.numpy.ones((1024, 1024)) @ jax.numpy.ones((1024, 1024)))
    texts = sentences(64)
    with jax.default_matmul_precision("highest"):
        ours = Embedder.load(folder).encode(texts, "passage")
    settings = Teacher(name="teacher", model=str(folder), backend="torch", dim=ours.shape[1])
    theirs = TorchEncoder(settings, folder, {})
    vectors = theirs(texts, ["passage"] * len(texts))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = float((ours * vectors).sum(1).min())
    where = "cuda" if torch.cuda.is_available() else "cpu"
    return Outcome(cosine > 0.999, {"least_cosine": cosine, "torch": torch.__version__, "torch_device": where})
