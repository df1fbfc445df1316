"""SIGKILL at logged moments, in every phase; the same command again, killed again, and at last to the end."""

from __future__ import annotations

import dataclasses
import random
import shutil
from functools import partial

from fault_campaign.inject import PHASES, Moment
from fault_campaign.world import Row, World


def moments_of(world: World, events: list[Moment]) -> dict[str, list[Moment]]:
    """The moments of each phase that every process reaches: the last fifth of each place's are left out.

    How many events a place has depends a little on threads; the first ones are always there.
    """
    last: dict[tuple[str, int, int], int] = {}
    for moment in events:
        last[moment.phase, moment.stage, moment.step] = moment.n
    found: dict[str, list[Moment]] = {phase: [] for phase in PHASES}
    for moment in events:
        if moment.n <= max(1, int(0.8 * last[moment.phase, moment.stage, moment.step])):
            found[moment.phase].append(moment)
    return found


def chain(events: list[Moment], world: World, rng: random.Random, *, early: bool = False) -> list[Moment]:
    """One moment of each phase, in the order in which a run comes to them; ``early``: in the first half of a place."""
    found = moments_of(world, events)
    if early:
        found = {phase: [m for m in many if m.n <= max(1, _last(many, m) // 2)] for phase, many in found.items()}
    order = {moment: i for i, moment in reversed(list(enumerate(events)))}
    return sorted((rng.choice(found[phase]) for phase in PHASES), key=order.__getitem__)


def _last(moments: list[Moment], one: Moment) -> int:
    return max(m.n for m in moments if (m.phase, m.stage, m.step) == (one.phase, one.stage, one.step))


def kill_chain(world: World, number: int, moments: list[Moment], seed: int) -> list[Row]:
    """Kill one run at each of the moments, each time starting the same command again; compare its end."""
    rng, rows = random.Random(f"{seed} {number}"), []
    run = world.place / f"killed-{number}"
    hide = () if number == 0 else ("torch", "matplotlib")
    for moment in moments:
        delay = rng.choice([0.0, rng.uniform(0.0, 0.05)])
        ended = world.call(run, moment=moment, delay=delay, hide=hide)
        struck = ended.strike()
        late = f" + {1000 * delay:.0f} ms" if delay else ""
        good = ended.code == -9 and struck is not None
        outcome = "killed" if good else f"not killed: exit {ended.code} {ended.message()}"
        rows.append(Row("kills", f"run {number + 1}, {moment}{late}", outcome, good))
        if not good:
            break
    ended = world.call(run, hide=hide)
    different = world.differences(run) if ended.code == 0 else [f"exit {ended.code}: {ended.output[-300:]}"]
    for i, row in enumerate(rows):
        if row.good:
            equal = "the end is equal to the bit" if not different else f"DIFFERENT: {', '.join(different[:3])}"
            rows[i] = dataclasses.replace(row, outcome=f"killed; {equal}", good=not different)
    if not different:
        shutil.rmtree(run)
    return rows


def tasks(world: World, events: list[Moment], kills: int, seed: int) -> list:
    """Runs that together are killed at least ``kills`` times, and equally often in each phase."""
    rng = random.Random(seed)
    number = -(-kills // len(PHASES))
    return [partial(kill_chain, world, i, chain(events, world, rng), seed) for i in range(number)]
