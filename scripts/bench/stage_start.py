"""What the start of a stage costs: choosing the static shapes from the sizes of all its batches.

    python scripts/bench/stage_start.py --output docs/results/stage-start.md

No texts, no model: token counts are drawn from a distribution, and ``Batches`` is made from them as a stage makes it.
The first start computes the sizes of all batches, a later one reads them. Beside it, what the same answers cost batch
after batch: every record drawn from Grain, every batch packed, timed on some batches and multiplied. The script fails
if the two differ for these batches. Times are CPU seconds of one process, which other work on the machine changes
little, and wall seconds for the first start.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from rich.console import Console
from train_bench.report import Section, show, write
from train_bench.world import machine

from jasper_jax.batches.batch_sizes import BatchLengths, batch_sizes
from jasper_jax.batches.batches import Batches
from jasper_jax.batches.draws import BatchDraws
from jasper_jax.encoders.packing import pack

SEED, SHAPES = 11, 3


class Case(NamedTuple):
    """``tokens`` is the mean of the texts' lengths before they are cut at ``longest``."""

    texts: int
    batch: int
    steps: int
    tokens: int
    longest: int


CASES = (
    Case(1_000_000, 4096, 10_000, 25, 128),
    Case(1_000_000, 4096, 10_000, 150, 512),
    Case(1_100_000, 4096, 10_000, 600, 2048),
    Case(100_000, 512, 10_000, 25, 128),
)


class Counts:
    """Stands in for ``TokenCounts``: geometric lengths."""

    def __init__(self, case: Case):
        rng = np.random.default_rng(0)
        self.key = "-".join(map(str, case))
        sizes = {"train": case.texts, "held_out": 2 * case.batch}
        self.by_split = {
            split: np.minimum(rng.geometric(1 / case.tokens, size) + 2, case.longest).astype(np.int32)
            for split, size in sizes.items()
        }

    def size(self, split: str) -> int:
        return len(self.by_split[split])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=20, help="batches that are drawn and packed one after another")
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    console, introduction = Console(width=120), [machine()]
    console.print(introduction[0])
    section = Section(
        "Seconds to the static shapes of a stage",
        ["texts", "batch × steps", "mean, longest text", "batch after batch", "first start", "its wall", "later start"],
        [measure(case, options.sample) for case in CASES],
        [
            f"CPU seconds of one process for one encoder, except *its wall*. *Batch after batch* was timed on"
            f" {options.sample} batches and multiplied; these batches need the same rows and texts either way.",
            f"Peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB.",
        ],
    )
    show(section, console)
    write(options.output, "What the start of a stage costs", introduction, [section])
    return 0


def measure(case: Case, sample: int) -> tuple[str, ...]:
    counts: Any = Counts(case)  # also what Batches asks of a text store
    draws = BatchDraws("texts", case.texts, 2 * case.batch, batch_size=case.batch, seed=SEED)
    options: dict[str, Any] = {"draws": draws, "steps": case.steps}
    with tempfile.TemporaryDirectory() as scratch:

        def start() -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            Batches(counts, None, None, {}, counts, shapes=SHAPES, folder=Path(scratch), **options)  # pyright: ignore
            return time.process_time() - cpu, time.perf_counter() - wall

        (first, wall), (later, _) = start(), start()
        lengths = BatchLengths(counts, draws, case.steps, 2)
        sizes = batch_sizes(lengths, Path(scratch))
    before = time.process_time()
    order = grain.MapDataset.range(case.texts).shuffle(seed=SEED).repeat(-(-case.batch * case.steps // case.texts))
    for number in range(sample):
        records = [order[i] for i in range(number * case.batch, (number + 1) * case.batch)]
        packing = pack(counts.by_split["train"][records], sizes.row_length)
        assert (packing.rows, packing.texts) == (sizes.rows[number], sizes.texts[number])
    one_by_one = (time.process_time() - before) / sample * case.steps
    return (
        f"{case.texts:,}",
        f"{case.batch:,} × {case.steps:,}",
        f"{case.tokens}, {case.longest}",
        f"{one_by_one:,.0f}",
        f"{first:.1f}",
        f"{wall:.1f}",
        f"{later:.3f}",
    )


if __name__ == "__main__":
    sys.exit(main())
