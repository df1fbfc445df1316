"""SIGKILL at logged moments, in every phase; the same command again, killed again, and at last to the end.

The end must be equal, and no kill may undo more than the steps since the last save and those done while that one was
committed: the next command must go on from every checkpoint whose save began so long before the kill.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from functools import partial

from fault_campaign.inject import PHASES, Moment
from fault_campaign.world import STEPS, Ended, Row, World

STEP_SECONDS = 0.5
"""A save takes a tenth of that; with the milliseconds of a tiny step no save would be over before the next."""
PATIENCE = 3
"""A save may take so many times as long to count as the longest of the undisturbed run: two runs share the cores."""


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


def count(stage: int, step: int) -> int:
    """Steps over all stages; step -1 is the end of the stage."""
    return STEPS * stage + (STEPS if step < 0 else step)


def commit_seconds(ended: Ended) -> float:
    """Seconds that a save may take to count: :data:`PATIENCE` times the longest of an undisturbed run."""
    begun = {moment: at for kind, moment, at in ended.events if kind == "save"}
    sealed = {(m.stage, m.step): at for kind, m, at in ended.events if kind == "sealed"}
    return PATIENCE * max(sealed[m.stage, m.step] - at for m, at in begun.items())


def lost_steps(ended: Ended, before: int, now: int, commit: float) -> tuple[int, int]:
    """Steps that a kill undid, and how many it might: ``before`` and ``now`` are the steps saved when the command
    began and after it was killed, ``commit`` the seconds that a save may take to count."""
    struck = next(at for kind, _, at in ended.events if kind == "strike")
    steps = [m for kind, m, _ in ended.events if kind == "event" and m.what == "step dispatched"]
    saves = [count(m.stage, m.step) for kind, m, at in ended.events if kind == "save" and at < struck - commit]
    done = max([before, *(count(m.stage, m.step) for m in steps)])
    return done - now, done - max([before, *saves])


def kill_chain(world: World, number: int, moments: list[Moment], seed: int, commit: float) -> list[Row]:
    """Kill one run at each of the moments, each time starting the same command again; compare its end."""
    rng, rows = random.Random(f"{seed} {number}"), []
    run = world.place / f"killed-{number}"
    hide = () if number == 0 else ("torch", "matplotlib")
    saved = 0
    for moment in moments:
        delay = rng.choice([0.0, rng.uniform(0.0, 0.05)])
        ended = world.call(run, moment=moment, delay=delay, hide=hide, step_seconds=STEP_SECONDS)
        struck = ended.strike()
        late = f" + {1000 * delay:.0f} ms" if delay else ""
        good = ended.code == -9 and struck is not None
        what, lost = f"run {number + 1}, {moment}{late}", None
        outcome = f"not killed: exit {ended.code} {ended.message()}"
        if good:
            before, saved = saved, world.saved(run)
            lost, allowed = lost_steps(ended, before, saved, commit)
            outcome, good = f"killed, {lost} steps lost of {allowed} allowed", lost <= allowed
        elif ended.code == 0 and struck is None:  # an earlier kill had left nothing to do there, or done already
            rows.append(Row("moments that did not come", what, "the run ended", True))
            break
        rows.append(Row("kills", what, outcome, good, lost))
        if lost is None:
            break
    ended = world.call(run, hide=hide)
    different = world.differences(run) if ended.code == 0 else [f"exit {ended.code}: {ended.output[-300:]}"]
    for i, row in enumerate(rows):
        if row.good:
            equal = "the end is equal to the bit" if not different else f"DIFFERENT: {', '.join(different[:3])}"
            rows[i] = dataclasses.replace(row, outcome=f"{row.outcome}; {equal}", good=not different)
    if not different:
        shutil.rmtree(run)
    return rows


def tasks(world: World, undisturbed: Ended, kills: int, seed: int) -> list:
    """Runs that together are killed at least ``kills`` times, and equally often in each phase."""
    rng, commit = random.Random(seed), commit_seconds(undisturbed)
    events = [moment for kind, moment, _ in undisturbed.events if kind == "event"]
    number = -(-kills // len(PHASES))
    return [partial(kill_chain, world, i, chain(events, world, rng), seed, commit) for i in range(number)]
