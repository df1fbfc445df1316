"""Two processes in one run folder, a clock that jumps, and Ctrl-C once and twice in every phase."""

from __future__ import annotations

import glob
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from fault_campaign.inject import Moment
from fault_campaign.kills import chain
from fault_campaign.world import Row, World

# ------------------------------------------------------------------------------------------ two processes


def refused(world: World, first: str, second: str) -> list[Row]:
    """``second`` while ``first`` trains: refused in one line, and the first ends as if nothing had been."""
    run = world.place / f"two-{first}-{second}"
    if first == "train":
        world.call(run, "embed")
    one = world.start(run, first)
    training = one.wait_until((run / "metrics.jsonl").exists)
    two = world.call(run, second)
    ended = one.wait()
    good = training and two.code == 2 and "another process is using this run folder" in two.message()
    rows = [Row("two processes", f"{second} while {first} is training", f"exit {two.code}: {_said(two, run)}", good)]
    if ended.code == 0 and first == "train":
        ended = world.call(run)
    different = world.differences(run) if ended.code == 0 else [ended.output[-300:]]
    rows.append(
        Row("two processes", f"the {first} that was there first", ", ".join(different) or "equal", not different)
    )
    return rows


def allowed(world: World, name: str, first: list[str], second: list[str]) -> list[Row]:
    """Two commands that may work on one folder at once, started together; then the run to its end."""
    run = world.place / f"two-{name}"
    commands = [world.start(run, *words) for words in (first, second)]
    ended = [command.wait() for command in commands]
    codes = [end.code for end in ended]
    last = world.call(run)
    different = world.differences(run) if last.code == 0 else [last.output[-300:]]
    good = codes == [0, 0] and not different and not any("Traceback" in end.output for end in ended)
    outcome = f"exit codes {codes}; {', '.join(different) or 'equal'}"
    return [Row("two processes", f"{' '.join(first)} + {' '.join(second)}", outcome, good)]


def same_moment(world: World) -> list[Row]:
    """Two ``run`` started together in an empty folder: one works, the other is refused."""
    run = world.place / "two-together"
    ended = [command.wait() for command in [world.start(run, "run"), world.start(run, "run")]]
    codes = sorted(end.code for end in ended)
    different = world.differences(run) if 0 in codes else ["neither finished"]
    good = codes == [0, 2] and not different
    outcome = f"exit codes {codes}; {', '.join(different) or 'equal'}"
    return [Row("two processes", "run + run, started together", outcome, good)]


def _said(ended, run: Path) -> str:
    return ended.message().replace(str(run), "") or ended.output[-300:]


def two_tasks(world: World) -> list:
    """All pairs."""
    index = ["--process-index", "0", "--process-count", "2"], ["--process-index", "1", "--process-count", "2"]
    return [
        partial(refused, world, "train", "train"),
        partial(refused, world, "run", "train"),
        partial(refused, world, "run", "evaluate"),
        partial(refused, world, "run", "export"),
        partial(same_moment, world),
        partial(allowed, world, "shares", ["embed", *index[0]], ["embed", *index[1]]),
        partial(allowed, world, "embed", ["embed"], ["embed"]),
        partial(allowed, world, "run-embed", ["run"], ["embed"]),
    ]


# ------------------------------------------------------------------------------------------ the clock


def jumping(world: World) -> list[Row]:
    """Python's clock jumps at every look."""
    run = world.place / "clock"
    ended = world.call(run, clock=True)
    different = world.differences(run) if ended.code == 0 else [ended.output[-300:]]
    what = "time.time() jumps by up to 30 days, back and forth, at every look"
    return [Row("clock", what, ", ".join(different) or "equal", not different)]


def faked(world: World) -> list[Row]:
    """The system's clock jumps, for C code too, where libfaketime is installed."""
    what = "the system's clock jumps by days, every half second (libfaketime)"
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1") + glob.glob("/usr/lib/faketime/libfaketimeMT.so.1")
    if not found:
        return [Row("clock", what, "skipped: libfaketime is not installed (apt-get install libfaketime)", True)]
    run, stamp = world.place / "clock-system", world.place / "faketime"
    stamp.write_text("+0\n")
    environment = {
        **os.environ,
        "LD_PRELOAD": found[0],
        "FAKETIME_TIMESTAMP_FILE": str(stamp),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "JASPER_CACHE": str(world.place / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "jasper_jax.cli", "run", str(world.recipe), f"run_dir={run}"]
    rng, jumps = random.Random(0), 0
    with open(world.place / "logs" / "faketime.out", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            stamp.write_text(f"{rng.choice('+-')}{rng.randrange(1, 30)}d\n")
            jumps += 1
            time.sleep(0.5)
    different = world.differences(run) if process.returncode == 0 else [f"exit {process.returncode}"]
    return [Row("clock", what, f"{jumps} jumps; {', '.join(different) or 'equal'}", not different)]


def clock_tasks(world: World) -> list:
    """Both clocks."""
    return [partial(jumping, world), partial(faked, world)]


# ------------------------------------------------------------------------------------------ Ctrl-C


def interrupted(world: World, number: int, moments: list[Moment], action: str) -> list[Row]:
    """Ctrl-C at each moment, once (exit code 75) or twice (130, at once); compare the end."""
    run, rows = world.place / f"ctrl-c-{number}-{action.replace(' ', '-')}", []
    expected = {"interrupt": {75}, "interrupt twice": {130}}[action]
    kind = {"interrupt": "Ctrl-C", "interrupt twice": "Ctrl-C twice"}[action]
    for moment in moments:
        ended = world.call(run, moment=moment, action=action, delay=0.005)
        if ended.code == 0 and ended.strike() is None:  # the interrupt before was obeyed only after this moment
            ended = world.call(world.place / f"{run.name}-{len(rows)}", moment=moment, action=action, delay=0.005)
        again = [at for what, _, at in ended.events if what == "again"]
        codes = expected if again else {75}  # it was obeyed before the second one came
        seconds = f", {ended.at - again[0]:.2f} s after the second" if again else ""
        good = ended.code in codes and "Traceback" not in ended.output and ended.strike() is not None
        good = good and (not again or ended.at - again[0] < 1.0)
        rows.append(Row(kind, str(moment), f"exit {ended.code}{seconds}" + ("" if good else ended.output[-500:]), good))
    ended = world.call(run)
    different = world.differences(run) if ended.code == 0 else [f"exit {ended.code}: {ended.output[-300:]}"]
    rows.append(Row(kind, f"run {number + 1}, continued to its end", ", ".join(different) or "equal", not different))
    if not different:
        shutil.rmtree(run)
    return rows


def interrupt_tasks(world: World, events: list[Moment], seed: int) -> list:
    """One run with single interrupts in every phase, two with double ones."""
    rng = random.Random(f"{seed} ctrl-c")
    return [
        partial(interrupted, world, number, chain(events, world, rng, early=True), action)
        for number, action in enumerate(("interrupt", "interrupt twice", "interrupt twice"))
    ]
