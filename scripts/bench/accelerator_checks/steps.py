"""Train steps of the large recipes with random weights: speed against the published peak, memory against the plan."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from accelerator_checks.check import Outcome
from accelerator_checks.recipes import described, random_batch
from jasper_jax.parameters.sharding import make_mesh, shardings
from jasper_jax.parameters.trees import flatten
from jasper_jax.planning.device_peak import peak_flops
from jasper_jax.planning.memory import device_bytes, program_memory
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.student.student import Student
from jasper_jax.teachers.stores import TeacherVectors
from jasper_jax.training.lowering import lower_step
from jasper_jax.training.mesh import begin_state, put_batch, share_of
from jasper_jax.training.model_flops import TextStepFlops
from jasper_jax.training.partition import make_partition
from jasper_jax.training.run_mesh import Needs, key_value_heads, mesh_sizes
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.step import make_program

PEAK_TOLERANCE = 0.15


def stella_stage3(size: str) -> Outcome:
    return measure(size, "stella_400m", 3, 0.35)


def jasper_stage3(size: str) -> Outcome:
    return measure(size, "jasper_2b", 3, 0.40)


def jasper_stage1(size: str) -> Outcome:
    return measure(size, "jasper_2b", 1, 0.40)


def mesh_of(recipe: Recipe, student: Student) -> Any:
    """All devices, as a run arranges them."""
    name = "the student"
    needs = Needs({name: key_value_heads(student.encoder.config)}, {name: flatten(student.shapes())})
    sizes = mesh_sizes(recipe.mesh, jax.device_count(), resolve_stages(recipe), needs)
    return make_mesh(sizes)


def measure(size: str, name: str, preset: int, least_mfu: float) -> Outcome:
    """Seconds, MFU, tokens/s and memory of the recipe's ``stage: preset``; every row full, so no padding."""
    recipe, student, teaching = described(name if size == "full" else "small")
    stage = next(one for one in resolve_stages(recipe) if one.settings.stage == preset)
    mesh = mesh_of(recipe, student)
    kind = make_kind(recipe, stage, student)
    partition = make_partition(stage.train, kind.active(student.shapes()), f"stages[{stage.index}].train")
    program = make_program(kind, partition, teaching, mesh)
    shapes = jax.eval_shape(lambda: partition.split(kind.active(student.init(0))))
    placed = tuple(shardings(part, mesh) for part in shapes)
    trained, frozen = jax.jit(lambda: partition.split(kind.active(student.init(0))), out_shardings=placed)()
    optimizer = begin_state(program.optimizer, trained, mesh)
    division = kind.row_division(mesh)
    rows = division.fill(stage.batch_size)
    host = random_batch(kind, teaching, rows)
    batch = put_batch(host, mesh, share_of(mesh), kind.replicated)
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = program.step.lower(trained, optimizer, frozen, {}, batch, np.int32(0)).compile()
    compile_seconds = time.perf_counter() - began
    planned = program_memory(compiled)
    steps = 10 if size == "full" else 2
    seconds, metrics = 0.0, {}
    for number in (3, steps):  # the first ones warm up
        began = time.perf_counter()
        for step in range(number):
            trained, optimizer, metrics = compiled(trained, optimizer, frozen, {}, batch, np.int32(step))
        jax.block_until_ready((trained, metrics))
        seconds = (time.perf_counter() - began) / number
    texts, length = stage.batch_size, host["ids"].shape[1]
    flops = TextStepFlops(student, trained, frozen)(texts, texts * length, texts * length**2)
    loss, peak = float(metrics["loss"]), peak_flops(jax.devices()[0])
    stats = jax.local_devices()[0].memory_stats() or {}
    used = stats.get("peak_bytes_in_use")
    values: dict[str, Any] = {
        "recipe": recipe.name,
        "stage": preset,
        "texts": texts,
        "length": length,
        "remat": student.remat,
        "pieces": division.pieces(rows),
        "seconds_per_step": seconds,
        "tokens_per_second": texts * length / seconds,
        "model_flops": flops,
        "compile_seconds": compile_seconds,
        "loss": loss,
        "state_bytes": device_bytes({"t": trained, "o": optimizer, "f": frozen}),
        "planned_bytes": planned.peak,
        "temporary_bytes": planned.temporaries,
        "peak_bytes": used,
        "limit_bytes": stats.get("bytes_limit"),
        "mfu": None if peak is None else flops / seconds / (peak * jax.device_count()),
        "least_mfu": least_mfu,
        "peak_over_plan": None if used is None else used / planned.peak,
    }
    good = bool(np.isfinite(loss))
    if values["mfu"] is None:
        values["no_mfu"] = f"no published peak is known of {jax.devices()[0].device_kind}"
    else:
        good &= values["mfu"] >= least_mfu
    if used is None:
        values["no_peak"] = f"no memory statistics on {jax.default_backend()}"
    else:
        good &= abs(used / planned.peak - 1) <= PEAK_TOLERANCE
    return Outcome(good, values)


def stages_compile(size: str) -> Outcome:
    """Every stage of both large recipes, compiled for these devices; four at a time."""
    names = ("stella_400m", "jasper_2b") if size == "full" else ("small",)
    lowered = {f"{name}, {stage}": one for name in names for stage, one in lowered_stages(name).items()}

    def compile_one(name: str) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            compiled = lowered[name].compile()
        except Exception as error:  # noqa: BLE001  (the other stages are compiled all the same)
            return {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        return {"seconds": time.perf_counter() - began, "planned_bytes": program_memory(compiled).peak}

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(lowered, pool.map(compile_one, lowered)))
    return Outcome(not any("error" in one for one in found.values()), {"stages": found})


def lowered_stages(name: str) -> dict[str, Any]:
    """Stage -> its step, lowered for these devices."""
    recipe, student, _ = described(name)
    vectors: Any = _SmallTeachers() if name == "small" else _vectors(recipe)
    mesh = mesh_of(recipe, student)
    return {
        stage.name: lower_step(recipe, vectors, stage, student, mesh, jax.default_backend()).lowered
        for stage in resolve_stages(recipe)
    }


def _vectors(recipe: Recipe) -> TeacherVectors:
    from jasper_jax.run import Run

    return Run(recipe, describe=True, progress=False).vectors


class _SmallTeachers:
    """The teachers of ``recipes.small_recipe``, of which only the dimension exists."""

    needed = True

    @property
    def teachers(self) -> tuple[Any, ...]:
        from types import SimpleNamespace

        from accelerator_checks.recipes import SMALL_DIM

        return (SimpleNamespace(name="teacher", dim=SMALL_DIM, settings=SimpleNamespace(mode="cached")),)
