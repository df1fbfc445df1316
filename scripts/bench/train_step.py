"""One train step against the same step in PyTorch, both float32, in one process, round after round in turn.

    python scripts/bench/train_step.py --run runs/quickstart --output train_step.md

RUN is the folder of a run whose texts and teacher vectors are there (``jasper embed`` suffices); the stage is its last
one that trains everything, e.g. the quickstart's third. Heads start random on both sides.

- ours: the jitted step of ``jasper train`` on the batches it would get, their texts packed into rows;
- PyTorch: transformers' BertModel with the same layers and parameters, the same texts padded to the longest of the
  batch, the same heads and losses, the relative loss written out (``train_bench/peer.py``), fused AdamW;
- the same PyTorch step without its relative loss.

First it is checked that both sides compute the same losses, before training and, after training on the same batches,
again. Tokenising and compiling are apart from the steps. ``--profile`` says where our time goes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from train_bench.profile import profile
from train_bench.report import Section, show, write
from train_bench.world import Ours, World, in_turn, machine, open_world, program_rows, seconds, spread

from jasper_jax.batches.loading import LoadedBatch

OURS, WRITTEN_OUT, WITHOUT = "jasper_jax", "PyTorch, relative loss written out", "PyTorch without relative loss"
PLAIN = {"where": "PyTorch, written out with torch.where", "gather": "PyTorch, written out by index"}
TOLERANCE = 1e-4
"""Relative; of every loss term before training. float32 sums over 33 million hinges differ in the seventh digit."""
TRAINED_TOLERANCE = 1e-2
"""Relative; of the loss after the rounds: AdamW turns rounding at gradients near 0 into whole steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder with texts and teacher vectors")
    parser.add_argument("--stage", type=int, default=-1, help="which stage of its recipe, from 0; default: the last")
    parser.add_argument("--batches", type=int, default=4, help="steps a round, from batches spread over the stage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-steps", type=int, default=20, help="steps of the loop that prepares its own batches")
    parser.add_argument("--plain", action="store_true", help="also the relative loss in the two plainer forms, slower")
    parser.add_argument("--profile", action="store_true", help="where the time of our step goes")
    parser.add_argument("--only-ours", action="store_true", help="no PyTorch: the profile and the loop alone")
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    console, introduction = Console(width=120), [machine()]
    console.print(introduction[0])
    with tempfile.TemporaryDirectory(prefix="jasper-train-step-") as scratch:
        world = open_world(options.run, options.stage, Path(scratch))
        ours = Ours(world)
        introduction.append(describe(world))
        console.print(introduction[1])
        numbers = spread_over(world, options.batches)
        batches = {k: world.batches.load(k) for k in {*numbers, *world.one_of_each_shape()}}
        chosen = [batches[k] for k in numbers]
        sections: list[Section] = []
        good = True

        def add(section: Section) -> None:
            sections.append(section)
            show(section, console)

        if not options.only_ours:
            found, good = against_torch(world, ours, chosen, options, Path(scratch))
            for section in found:
                add(section)
        for batch in batches.values():
            ours.step(batch)  # the other shapes compile
        compiled = ours.compiled
        line = f"{compiled.count} programs in {compiled.seconds:.1f} s, once a run: a step for each number of rows"
        add(Section("Compiling", (), lines=[line + ("." if options.only_ours else ", and the evaluation.")]))
        add(host_work(world, ours, chosen, options))
        add(padding(world))
        if options.profile:
            middle = sorted(chosen, key=lambda batch: batch.slots)[len(chosen) // 2]
            for section in profile_sections(profile(world, ours, middle, options.rounds, Path(scratch))):
                add(section)
    write(options.output, "Train step", introduction, sections)
    return 0 if good else 1


def describe(world: World) -> str:
    rows = ", ".join(str(rows) for rows in world.batches.packer.row_counts)
    heads = ", ".join(f"{name} {world.student.heads[name].dims}" for name in world.stage.heads)
    return (
        f"{world.run.recipe.name}, {world.stage.name}: batch {world.stage.batch_size}, heads {heads};"
        f" rows of {world.batches.packer.row_length} tokens, {rows} of them"
    )


def spread_over(world: World, number: int) -> list[int]:
    """Numbers of batches at even distances over the stage, so that their row counts are those of the stage."""
    return [int(k) for k in np.linspace(0, world.batches.steps - 1, number).round()]


def against_torch(
    world: World, ours: Ours, batches: Sequence[LoadedBatch], options: argparse.Namespace, scratch: Path
) -> tuple[list[Section], bool]:
    """Equal losses, then steps in turn."""
    import torch
    import transformers
    from train_bench.peer import HostWork, Peer

    work = HostWork(world)
    padded = [work.load(batch) for batch in batches]
    peers = {WRITTEN_OUT: Peer(world, scratch / "model", "lean"), WITHOUT: Peer(world, scratch / "model", None)}
    if options.plain:
        peers |= {name: Peer(world, scratch / "model", form) for form, name in PLAIN.items()}
    differing = [
        (name, ours.losses(batches[0]), peer.losses(padded[0]))
        for name, peer in peers.items()
        if name != WITHOUT  # it computes no total of the same terms
    ]
    before = compare(*differing[0][1:])
    worst = max(difference for _, mine, theirs in differing for *_, difference in compare(mine, theirs))
    equal = Section(
        "The same losses before training",
        ("term", "jasper_jax", "PyTorch", "relative difference"),
        [(name, f"{mine:.7g}", f"{theirs:.7g}", f"{difference:.1e}") for name, mine, theirs, difference in before],
    )

    def ours_round() -> None:
        for batch in batches:
            ours.step(batch)

    def peer_round(peer: Any) -> None:
        for batch in padded:
            peer.step(batch)

    contenders = {OURS: ours_round, **{name: (lambda p=peer: peer_round(p)) for name, peer in peers.items()}}
    for run in contenders.values():
        run()  # compiles ours, fills the allocators of both
    times = in_turn(contenders, options.rounds)
    after = compare(ours.losses(batches[0]), peers[WRITTEN_OUT].losses(padded[0]))
    _, mine, theirs, drift = next(row for row in after if row[0] == "loss")
    equal.lines = [
        f"Largest difference {worst:.1e} (allowed {TOLERANCE:.0e}); after {ours.steps} steps on each side the losses"
        f" are {mine:.5g} and {theirs:.5g}, {drift:.1e} apart (allowed {TRAINED_TOLERANCE:.0e})."
    ]
    texts = world.stage.batch_size * len(batches)
    table = Section(
        "One train step",
        ("", "ms a step", "texts/s", "ours is faster by (median of the rounds' ratios)"),
        [
            (
                name,
                f"{statistics.median(found) / len(batches) * 1e3:,.0f}",
                f"{texts / statistics.median(found):,.1f}",
                "" if name == OURS else spread(found, times[OURS]),
            )
            for name, found in times.items()
        ],
        [
            f"{options.rounds} rounds of {len(batches)} steps, order turned each round; torch {torch.__version__},"
            f" transformers {transformers.__version__}, {torch.get_num_threads()} threads.",
            f"Of these batches padding is {share_of_padding(batches):.1%} of our token slots,"
            f" {1 - sum(float(b.mask.sum()) for b in padded) / sum(b.mask.numel() for b in padded):.1%} of PyTorch's"
            f" ({sum(b.slots for b in batches):,} and {sum(b.mask.numel() for b in padded):,} slots).",
            f"Apart from the steps, a batch takes PyTorch's side {host_ms(work.load, batches):.1f} ms to read, tokenise"
            f" and pad.",
        ],
    )
    return [equal, table], worst <= TOLERANCE and drift <= TRAINED_TOLERANCE


def compare(mine: Mapping[str, float], theirs: Mapping[str, float]) -> list[tuple[str, float, float, float]]:
    """(term, ours, theirs, relative difference) of the terms."""
    if mine.keys() != theirs.keys():
        raise SystemExit(f"the two sides have other terms: {sorted(mine)} and {sorted(theirs)}")
    return [(name, mine[name], theirs[name], abs(theirs[name] / mine[name] - 1)) for name in sorted(mine)]


def host_ms(load: Any, batches: Sequence[Any]) -> float:
    """Median milliseconds of ``load`` alone."""
    return statistics.median(seconds(lambda one=one: load(one)) for one in batches) * 1e3


def share_of_padding(batches: Sequence[LoadedBatch]) -> float:
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.slots for batch in batches)


def host_work(world: World, ours: Ours, batches: Sequence[LoadedBatch], options: argparse.Namespace) -> Section:
    """Steps whose batches lie ready against steps whose batches are prepared meanwhile, as ``jasper train`` does."""
    number = min(options.loop_steps, world.batches.steps)
    start = world.batches.steps - number  # the last ones: nothing is prepared ahead that is not used
    ready = [world.batches.load(k) for k in range(start, world.batches.steps)]

    def train(source: Any) -> None:
        before = None
        for batch in source:
            values = ours.begin(batch)
            if before:
                jax.device_get(before)  # a step late, as the loop does
            before = values
        jax.block_until_ready((ours.trained, ours.state))

    work = {
        "batches ready in memory": lambda: train(ready),
        "batches prepared in threads meanwhile": lambda: train(world.batches.iterate(start)),
    }
    times = in_turn(work, options.rounds)
    without, with_work = times.values()
    step = statistics.median(without) / number * 1e3
    alone = host_ms(world.batches.load, [batch.number for batch in batches])
    more = [(b - a) / a for a, b in zip(without, with_work)]
    return Section(
        "Host work: read texts and vectors, tokenise, pack",
        ("", "ms a step", "texts/s"),
        [
            (
                name,
                f"{statistics.median(found) / number * 1e3:,.1f}",
                f"{world.stage.batch_size * number / statistics.median(found):,.1f}",
            )
            for name, found in times.items()
        ],
        [
            f"Alone, a batch takes {alone:.1f} ms, {alone / step:.1%} of a step. Prepared meanwhile it adds"
            f" {statistics.median(more):+.1%} (rounds {min(more):+.1%} to {max(more):+.1%}) to {number} steps.",
        ],
    )


def padding(world: World) -> Section:
    """Padding over all batches of every stage, from token counts alone."""
    rows: list[tuple[str, ...]] = []
    sums = np.zeros(3)
    for name, batches in world.by_stage.items():
        found = np.zeros(3)
        for k in range(batches.steps):
            lengths = world.counts.by_split["train"][batches.indices(k)]
            found += (
                lengths.sum(),
                program_rows(batches, world.counts, k) * batches.packer.row_length,
                len(lengths) * lengths.max(),
            )
        rows.append((name, str(batches.steps), *shares(found), ", ".join(map(str, batches.packer.row_counts))))
        sums += found
    steps = sum(batches.steps for batches in world.by_stage.values())
    rows.append(("all stages", str(steps), *shares(sums), ""))
    return Section(
        "Padding, as a share of the token slots the encoder computes",
        ("stage", "batches", "packed into rows", "padded to the longest", "slots of it a packed one", "row counts"),
        rows,
    )


def shares(found: np.ndarray) -> tuple[str, str, str]:
    tokens, packed, longest = found
    return f"{1 - tokens / packed:.1%}", f"{1 - tokens / longest:.1%}", f"{longest / packed:.2f}"


def profile_sections(found: Mapping[str, Any]) -> list[Section]:
    shape = found["shape"]
    return [
        Section(
            f"Our step in pieces, {shape}", ("piece, a program of its own", "time", "of the step"), found["pieces"]
        ),
        Section(
            "Its matmuls, forward and backward", ("", "GFLOP", "at the fastest rate"), found["flops"], [found["line"]]
        ),
        Section("Rates of plain products of these shapes", ("shapes", "GFLOP/s"), found["rates"]),
        Section("Operations of a traced step", ("kind", "of the cores' time"), found["operations"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
