"""What checkpoints cost training: steps with a save among them against the same steps without, in turn.

    python scripts/bench/checkpoint.py --run runs/quickstart --output checkpoint.md

RUN is the folder of a run whose texts and teacher vectors are there (``jasper embed`` suffices). A round is as many
steps of the real loop as the recipe puts between two saves (``training.save_every``), batches prepared meanwhile. One
side begins its round with a save (parameters and AdamW's state, through ``checkpoints/checkpoint.py``), which is
written and sealed while the steps run, and ends it with the wait that the next save would begin with. The difference is
all that a save costs, the contention for cores and memory with it, not only the call that blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console
from train_bench.report import Section, show, write
from train_bench.world import Ours, World, in_turn, machine, open_world, spread

from jasper_jax.checkpoints.checkpoint import Checkpoints, Position
from jasper_jax.runtime.environment import environment

WITH, WITHOUT = "with a save", "without"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder with texts and teacher vectors")
    parser.add_argument("--stage", type=int, default=-1, help="which stage of its recipe, from 0; default: the last")
    parser.add_argument("--every", type=int, help="steps between two saves; default: the recipe's save_every")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--place", type=Path, help="where checkpoints are written; default: the disk of the run")
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    console, introduction = Console(width=120), [machine()]
    console.print(introduction[0])
    place = options.place or options.run
    with tempfile.TemporaryDirectory(prefix=".checkpoint-bench-", dir=place) as scratch:
        world = open_world(options.run, options.stage, Path(scratch))
        section = measure(world, options.every, options.rounds, Path(scratch))
    show(section, console)
    write(options.output, "What checkpoints cost", introduction, [section])
    return 0


def measure(world: World, every: int | None, rounds: int, scratch: Path) -> Section:
    recipe, ours = world.run.recipe, Ours(world)
    number = min(every or recipe.training.save_every, world.batches.steps)
    start = world.batches.steps - number  # the last ones: nothing is prepared ahead that is not used
    checkpoints = Checkpoints(scratch / "checkpoints", [s.name for s in world.run.stages], recipe.training.keep)
    metadata = {"recipe": recipe.model_dump(mode="json"), "environment": environment()}
    blocked: dict[str, list[float]] = {"the call that starts a save": [], "waiting for it at the end": []}

    def steps() -> None:
        before = None
        for batch in world.batches.iterate(start):
            values = ours.begin(batch)
            if before:
                jax.device_get(before)  # a step late, as the loop does
            checkpoints.settle()
            before = values
        jax.block_until_ready((ours.trained, ours.state))

    def with_a_save() -> None:
        call, wait = blocked.values()
        began = time.perf_counter()
        state = {"trained": ours.trained, "optimizer": ours.state}
        checkpoints.save_step(Position(world.stage.index, ours.steps), state, metadata)
        call.append(time.perf_counter() - began)
        steps()
        began = time.perf_counter()
        checkpoints.wait()
        wait.append(time.perf_counter() - began)

    for batch in world.one_of_each_shape():
        ours.step(world.batches.load(batch))  # compiles
    # Once each before counting: Orbax loads its machinery with the first save.
    steps()
    with_a_save()
    for found in blocked.values():
        found.clear()
    times = in_turn({WITH: with_a_save, WITHOUT: steps}, rounds)
    last = checkpoints.step(world.stage.index, checkpoints.steps(world.stage.index)[-1])
    written = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    state = sum(leaf.nbytes for leaf in jax.tree.leaves((ours.trained, ours.state)))
    costs = [a - b for a, b in zip(times[WITH], times[WITHOUT])]
    between = statistics.median(times[WITHOUT])
    rows = [
        (f"{number} steps {name}", f"{statistics.median(found):.3f}", f"{min(found):.3f} to {max(found):.3f}", "")
        for name, found in times.items()
    ]
    rows += [
        (
            name,
            f"{statistics.median(found):.3f}",
            f"{min(found):.3f} to {max(found):.3f}",
            f"{statistics.median(found) / between:.1%}",
        )
        for name, found in {**blocked, "all that a save costs": costs}.items()
    ]
    return Section(
        f"A save every {number} steps, {world.stage.name}",
        ("", "seconds", "rounds", "of the steps between two saves"),
        rows,
        [
            f"State {state / 2**20:,.0f} MiB, {written / 2**20:,.0f} MiB on disk; {rounds} rounds, order turned each"
            f" round; time with over time without {spread(times[WITH], times[WITHOUT], 3)}.",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
