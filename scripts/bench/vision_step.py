"""Where the cores' time goes while a stage on images trains: into the step, into reading and decoding, or nowhere.

    python scripts/bench/vision_step.py --run runs/quickstart_vision [--output docs/results/vision-step.md]

RUN is the folder of a run that has begun its stage on images. Its first batches are trained on once more, in memory,
fed as ``jasper train`` feeds them: decoded ahead by threads of the same process. Each thread that decodes counts its
own processor time; the rest of the process's is the step's (and its loop's), what is missing to all cores idleness.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from train_bench.report import Section, show, write
from train_bench.world import machine, seconds

from jasper_jax.batches.image_batches import ImageBatches
from jasper_jax.batches.loading import LoadedBatch, prepared_ahead
from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.student.start import load_student
from jasper_jax.training.mesh import abstract_params, begin_state
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import Inputs, make_kind
from jasper_jax.training.step import CompiledPrograms, make_program
from jasper_jax.training.teaching import Teaching

WARM = 8
"""Steps before the clock starts: the program compiles, and the batches prepared meanwhile are used up."""


class Counted:
    """Batches, and the processor seconds that the threads which load them spend on it."""

    def __init__(self, batches: ImageBatches):
        self.batches, self.seconds, self._lock = batches, 0.0, threading.Lock()

    def load(self, number: int) -> LoadedBatch:
        began = time.thread_time()
        loaded = self.batches.load(number)
        with self._lock:
            self.seconds += time.thread_time() - began
        return loaded


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder whose recipe has a stage on images")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    run = Run(load_recipe(options.run / "recipe.yaml", [f"run_dir={options.run}"]), progress=False)
    stage = next(stage for stage in run.stages if stage.learns_from("images"))
    student, params, tokenizer = load_student(run.recipe, None, run.student)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    checkpoints = run.run_folder.checkpoints()
    begun = checkpoints.start() if not stage.index else checkpoints.final(stage.index - 1)
    params = checkpoints.load(begun, abstract_params(params, mesh))
    kind = make_kind(run.recipe, stage, student)
    batches = kind.batches(Inputs(mesh, tokenizer, run.folder, pairs=run.data.pairs(), progress=False), params)
    assert isinstance(batches, ImageBatches)
    partition = make_partition(stage.train, kind.active(params), "train")
    program = make_program(kind, partition, Teaching(), mesh)
    compiled = CompiledPrograms(program, mesh, kind.replicated)
    cores = len(os.sched_getaffinity(0))
    rows: list[tuple[str, ...]] = []
    for number in range(options.rounds):
        trained, frozen = jax.jit(partition.split)(kind.active(params))
        state = begin_state(program.optimizer, trained, mesh)
        counted = Counted(batches)
        began = spent = decoded = 0.0
        for batch in prepared_ahead(counted.load, 0, min(WARM + options.steps, stage.steps)):
            step = np.int32(batch.number)
            trained, state, values = compiled.step(trained, state, frozen, {}, batch.arrays, step)
            if batch.number + 1 == WARM:
                jax.block_until_ready(values)
                began, spent, decoded = time.monotonic(), time.process_time(), counted.seconds
        jax.block_until_ready(values)
        steps = batch.number + 1 - WARM
        wall, busy, decoding = time.monotonic() - began, time.process_time() - spent, counted.seconds - decoded
        shares = ((busy - decoding) / (cores * wall), decoding / (cores * wall), 1 - busy / (cores * wall))
        rows.append((str(number + 1), f"{wall / steps * 1e3:,.0f}", *(f"{share:.1%}" for share in shares)))
    alone = [seconds(partial(batches.load, k)) for k in range(4)]
    vision = run.recipe.student.vision
    assert vision is not None
    introduction = [
        machine(),
        f"{run.recipe.name}, {stage.name}: {stage.batch_size} images of {vision.image_size} pixels,"
        f" {len(partition.trained)} leaves trained; {options.rounds} times {steps} steps",
    ]
    head = ("round", "ms a step", "in the step", "reading and decoding", "idle")
    line = (
        f"Shares of {cores} cores' time. Alone, a batch takes {statistics.median(alone) * 1e3:,.0f} ms to read and"
        " decode on one core."
    )
    section = Section("Where the time of the cores goes", head, rows, [line])
    show(section, Console(width=120))
    write(options.output, "A step on images", introduction, [section])
    return 0


if __name__ == "__main__":
    sys.exit(main())
