"""A disk that fills up, and a folder that becomes read-only, in every phase: one line, exit code 2, then continued."""

from __future__ import annotations

import random
import shutil
import subprocess
from functools import partial
from pathlib import Path

from fault_campaign.inject import Moment, set_writable
from fault_campaign.kills import chain
from fault_campaign.world import Ended, Row, World

REASONS = {"fill": "No space left on device", "lock": "Permission denied"}
SIZE = "24m"


def mounted(folder: Path) -> bool:
    """Mount a small tmpfs on ``folder``; whether that was allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    return done.returncode == 0


def one_line(ended: Ended, reason: str, run: Path) -> str:
    """What is wrong with how a command told of a fault; nothing when it did as it should."""
    wrong = []
    if ended.code != 2:
        wrong.append(f"exit code {ended.code}")
    if "Traceback" in ended.output:
        wrong.append("a traceback")
    said = [line for line in ended.output.splitlines() if line.startswith("jasper: ")]
    if len(said) != 1:
        wrong.append(f"{len(said)} lines")
    elif reason not in said[0] or str(run) not in said[0]:
        wrong.append(f"the line names no place or not {reason!r}")
    return ", ".join(wrong)


def starve(world: World, number: int, moments: list[Moment], action: str) -> list[Row]:
    """Strike one run at each moment, mend, start again; compare its end."""
    kind = {"fill": "disk full", "lock": "read-only"}[action]
    place = world.place / f"{action}-{number}"
    if action == "fill" and not mounted(place):
        return [Row(kind, "every phase", "skipped: mounting a tmpfs is not allowed here (needs root)", True)]
    run, rows = place / "run", []
    try:
        for moment in moments:
            ended = world.call(run, moment=moment, action=action, plain_user=True)
            if action == "fill":
                (place / "filler").unlink(missing_ok=True)
            else:
                set_writable(run, True)
            wrong = one_line(ended, REASONS[action], run) if ended.strike() else "the moment never came"
            said = ended.message().replace(str(place), "") or ended.output[-500:]
            rows.append(Row(kind, str(moment), f"{wrong}: {said}" if wrong else said, not wrong))
        ended = world.call(run)
        different = world.differences(run) if ended.code == 0 else [f"exit {ended.code}: {ended.output[-300:]}"]
        leftovers = [p.name for p in run.rglob("*.tmp")] + [p.name for p in run.rglob("*orbax-checkpoint-tmp*")]
        different += [f"left behind: {name}" for name in leftovers]
        rows.append(
            Row(kind, f"run {number + 1}, continued to its end", ", ".join(different) or "equal", not different)
        )
    finally:
        if action == "fill":
            subprocess.run(["umount", str(place)], capture_output=True, check=False)
        shutil.rmtree(place, ignore_errors=True)
    return rows


def tasks(world: World, events: list[Moment], seed: int) -> list:
    """Two runs for each fault, each struck once in every phase."""
    rng = random.Random(f"{seed} disk")
    return [
        partial(starve, world, number, chain(events, world, rng, early=True), action)
        for action in ("fill", "lock")
        for number in range(2)
    ]
