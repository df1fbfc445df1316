"""The real pieces of one stage of a run: its batches, its jitted step, its starting state. Nothing here is measured."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jasper_jax.batches.batch_sizes import TokenCounts
from jasper_jax.batches.batches import Batches
from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.encoders.packing import pack
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.losses import HeadLoss
from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.recipe.load import load_recipe
from jasper_jax.recipe.stages import ResolvedStage
from jasper_jax.run import Run
from jasper_jax.runtime.environment import environment
from jasper_jax.student.start import load_student
from jasper_jax.student.student import Student
from jasper_jax.training.mesh import begin_state, put_params
from jasper_jax.training.optimizer import learning_rate
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import StageKind, make_kind
from jasper_jax.training.step import CompiledPrograms, StageProgram, make_program
from jasper_jax.training.teaching import Teaching


@dataclasses.dataclass
class World:
    """What ``jasper train`` would have in hand at the first step of ``stage``, the heads random."""

    run: Run
    stage: ResolvedStage
    kind: StageKind
    student: Student
    tokenizer: Tokenizer
    params: dict[str, Any]
    mesh: Mesh
    program: StageProgram
    batches: Batches
    by_stage: dict[str, Batches]
    counts: TokenCounts
    spec: dict[str, HeadLoss]
    rate: Callable[[int], float]

    @cached_property
    def rows_needed(self) -> np.ndarray:
        """Rows of the program that each batch of the stage runs in."""
        return np.array([program_rows(self.batches, self.counts, k) for k in range(self.batches.steps)])

    def one_of_each_shape(self) -> list[int]:
        """Numbers of batches, the first of each compiled shape."""
        return [int(np.flatnonzero(self.rows_needed == rows)[0]) for rows in np.unique(self.rows_needed)]

    def prompted(self, batch: LoadedBatch) -> list[str]:
        """The texts of a batch as the tokenizer gets them."""
        texts = self.batches.store.read("train", batch.indices)
        return [self.student.prompts[text.kind] + text.text for text in texts]


def open_world(folder: Path, stage_index: int, scratch: Path) -> World:
    """From a run folder whose stores are there; what has to be written goes to ``scratch``, not into the run."""
    recipe = load_recipe(folder / "recipe.yaml", [f"run_dir={folder}"])
    run = Run(recipe, progress=False)
    stage = run.stages[stage_index]
    texts = run.data.texts()
    view = run.vectors.view(texts)
    if view is None:
        raise SystemExit(f"{folder}: its recipe has no teachers; this measures distillation from teacher vectors")
    student, params, tokenizer = load_student(recipe, view.dim, run.student)
    cutter = tokenizer.with_max_length(min(recipe.training.max_length or student.max_length, student.max_length))
    counts = TokenCounts(texts, cutter, student.prompts, scratch / "token_counts")
    by_stage = {
        one.name: Batches(
            texts,
            view,
            cutter,
            student.prompts,
            counts,
            draws=make_kind(recipe, one, student).draws("texts", texts.size("train"), texts.size("held_out")),
            steps=one.steps,
            shapes=recipe.training.shapes,
            folder=scratch / "token_counts",
            row=recipe.training.row_length,
        )
        for one in run.stages
    }
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    kind, teaching = make_kind(recipe, stage, student), Teaching.of(view)
    active = kind.active(params)
    partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
    return World(
        run=run,
        stage=stage,
        kind=kind,
        student=student,
        tokenizer=cutter,
        params=active,
        mesh=mesh,
        program=make_program(kind, partition, teaching, mesh),
        batches=by_stage[stage.name],
        by_stage=by_stage,
        counts=counts,
        spec=kind.head_losses(teaching),
        rate=lambda step: float(learning_rate(stage.settings)(step)),
    )


def program_rows(batches: Batches, counts: TokenCounts, number: int) -> int:
    """Rows of the smallest program that holds the batch: what ``Batches`` chooses, without reading its texts."""
    needed = pack(counts.by_split["train"][batches.indices(number)], batches.packer.row_length).rows
    return int(batches.packer.row_counts[np.searchsorted(batches.packer.row_counts, needed)])


class Ours:
    """The jitted step of the stage, with the state it trains."""

    name = "jasper_jax"

    def __init__(self, world: World):
        partition = world.program.partition
        self.compiled = CompiledPrograms(world.program, world.mesh, world.kind.replicated)
        # Copies: the step donates its arguments, and the parameters of the world stay as they are.
        copies = (jax.tree.map(jnp.array, part) for part in partition.split(world.params))
        self.trained, self.frozen = (put_params(part, world.mesh) for part in copies)
        self.state = begin_state(world.program.optimizer, self.trained, world.mesh)
        self.steps = 0

    def begin(self, batch: LoadedBatch) -> dict[str, jax.Array]:
        """Start a step; its metrics are waited for by whoever reads them, as in the training loop."""
        number = np.int32(self.steps)
        self.trained, self.state, values = self.compiled.step(
            self.trained, self.state, self.frozen, {}, batch.arrays, number
        )
        self.steps += 1
        return values

    def step(self, batch: LoadedBatch) -> float:
        """A whole step; its loss."""
        values = self.begin(batch)
        jax.block_until_ready((self.trained, self.state))
        return float(values["loss"])

    def losses(self, batch: LoadedBatch) -> dict[str, float]:
        """The loss and every term of every head at the present parameters."""
        values = self.compiled.evaluate(self.trained, self.frozen, {}, batch.arrays)
        return {name: float(value) for name, value in values.items()}


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender, round after round, the order turned round each time."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders) if number % 2 else list(contenders)[::-1]
        for name in order:
            times[name].append(seconds(contenders[name]))
    return times


def spread(numerator: Sequence[float], denominator: Sequence[float], digits: int = 2) -> str:
    """The median of the ratios of the rounds, with their range."""
    ratios = [a / b for a, b in zip(numerator, denominator)]
    middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
    return f"{middle:.{digits}f} (rounds {least:.{digits}f} to {most:.{digits}f})"


def machine() -> str:
    """One line on where the figures come from, the load at that moment with it."""
    model = next(
        (line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    found = environment()
    return f"{model}, {found['cores']} cores, {found['backend']}, jaxlib {found['jaxlib']}{load}"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []
