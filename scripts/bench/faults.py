"""The fault campaign: a run is killed, starved of disk, damaged, doubled, and interrupted, and must come out the same.

    python scripts/bench/faults.py [kills|disk|flip|two|clock|ctrl-c|all] [--kills 40] [--seed 0] [--output FILE.md]

Tiny random models and local text, no network. The exit code is 1 when anything was not as it should be. Disk-full
needs the right to mount a tmpfs and is skipped, with a line that says so, without it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from fault_campaign import disk, flips, kills, others
from fault_campaign.world import Row, World, in_parallel, in_process_of_its_own

PARTS = ("kills", "disk", "flip", "two", "clock", "ctrl-c")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--kills", type=int, default=40, help="at least so many, equally many in each phase")
    parser.add_argument("--seed", type=int, default=0, help="chooses moments, delays and bytes")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--place", type=Path, help="folder to work in and to keep; default: a temporary one")
    parser.add_argument("--output", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    if options.place:
        return campaign(options, options.place.resolve())
    with tempfile.TemporaryDirectory(prefix="jasper-faults-") as place:
        return campaign(options, Path(place))


def campaign(options: argparse.Namespace, place: Path) -> int:
    began = time.monotonic()
    preload()
    world = World(place)
    in_process_of_its_own(world.build)  # it uses JAX, after which this process could not be forked
    print(f"undisturbed run in {place}", flush=True)
    first = world.call(world.undisturbed)
    if first.code:
        print(first.output)
        return 1
    events = [moment for kind, moment, _ in first.events if kind == "event"]
    print(f"  {time.monotonic() - began:.0f} s, {len(events)} moments", flush=True)
    world.differences(world.undisturbed)
    chosen = PARTS if options.part == "all" else (options.part,)
    makers = {
        "kills": lambda: kills.tasks(world, first, options.kills, options.seed),
        "disk": lambda: disk.tasks(world, events, options.seed),
        "flip": lambda: flips.tasks(world, events, options.seed),
        "two": lambda: others.two_tasks(world),
        "clock": lambda: others.clock_tasks(world),
        "ctrl-c": lambda: others.interrupt_tasks(world, events, options.seed),
    }
    tasks = [task for part in chosen for task in makers[part]()]
    rows: list[Row] = []
    ended = 0

    def done(found: list[Row]) -> None:
        nonlocal ended
        ended += 1
        rows.extend(found)
        for row in found:
            if not row.good:
                print(f"  WRONG {row.kind}: {row.what}: {row.outcome}", flush=True)
        kinds = ", ".join(sorted({row.kind for row in found}))
        print(f"{ended} of {len(tasks)} ({kinds}), {time.monotonic() - began:.0f} s", flush=True)

    in_parallel(tasks, options.jobs, place, done)
    damaged = world.damaged_programs()
    rows.append(
        Row("programs", "the cache of compiled programs afterwards", ", ".join(damaged) or "whole", not damaged)
    )
    text = report(rows, options, time.monotonic() - began, kills.commit_seconds(first))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)
    print(text)
    return 0 if all(row.good for row in rows) else 1


def preload() -> None:
    """Import what every command needs, so that commands can be forked; nothing here may start JAX's backend."""
    import tensorflow_datasets  # noqa: F401

    from jasper_jax.data.shards import example_class

    example_class()


def report(rows: list[Row], options: argparse.Namespace, seconds: float, commit: float) -> str:
    """The result as Markdown: a summary, then every case."""
    command = f"python scripts/bench/faults.py {options.part} --kills {options.kills} --seed {options.seed}"
    lines = [
        "# Fault campaign",
        "",
        f"`{command}`: {seconds / 60:.1f} minutes, Python {platform.python_version()}, {options.jobs} runs at a time.",
        "Equal means: every parameter after every stage, the exported folder, `evaluation.json` and the losses of",
        "every step are those of an undisturbed run, to the bit.",
        "",
        "| | cases | as it should be |",
        "| --- | ---: | ---: |",
    ]
    cases, good = Counter(row.kind for row in rows), Counter(row.kind for row in rows if row.good)
    lines += [f"| {kind} | {number} | {good[kind]} |" for kind, number in cases.items()]
    lost = [row.lost for row in rows if row.lost is not None]
    if lost:
        lines += [
            "",
            f"Steps undone by {len(lost)} kills: {sum(lost)}, at most {max(lost)} by one. Allowed are the steps since",
            f"the last save, and those done in the {commit:.2f} s that it may take to count; a save every 2 steps of",
            f"{kills.STEP_SECONDS} s.",
        ]
    for kind in cases:
        lines += ["", f"## {kind}", "", "| | what | outcome |", "| --- | --- | --- |"]
        for row in rows:
            if row.kind == kind:
                outcome = row.outcome.replace("|", "\\|").replace("\n", " ")
                lines.append(f"| {'ok' if row.good else '**WRONG**'} | {row.what} | {outcome} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
