"""A plan for people: three tables, and what was left out of the figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jasper_jax.parameters.sharding import AXES
from jasper_jax.parameters.table import leaf_table
from jasper_jax.planning.machine import Machine
from jasper_jax.planning.plan import StagePlan
from jasper_jax.planning.topology import Topology

GIB = 2**30


def print_plan(topology: Topology | Machine, plans: Sequence[StagePlan], out: Console) -> None:
    """What the recipe needs on ``topology``; ``plans`` in the order in which they were made."""
    out.print(_memory(topology, plans))
    out.print(leaf_table(max((plan.leaves for plan in plans), key=len)))
    fitting = [plan for plan in plans if plan.estimate is not None]
    if fitting:
        out.print(_time(topology, fitting))
        out.print(_collectives(fitting))
    _totals(topology, plans, out)
    if isinstance(topology, Machine):
        out.print(
            f"{topology}: an estimate. Parameters, optimizer and teachers are exact; temporaries, operations and"
            " communication are those of the same program on simulated devices, in float32 where a GPU has bfloat16.",
            highlight=False,
        )
    for plan in fitting:
        assert plan.analysis is not None
        for name in dict.fromkeys(k.op_name.rpartition("/")[2] or k.target for k in plan.analysis.unknown_kernels):
            out.print(f"{plan.stage.name}: operations of the kernel {name} are not counted")
        for loop in plan.analysis.unknown_loops:
            out.print(f"{plan.stage.name}: the loop {loop} has no length in the program and is counted once")


def _name(plan: StagePlan) -> str:
    return "\n".join([plan.stage.name, *plan.settings])


def _memory(topology: Topology | Machine, plans: Sequence[StagePlan]) -> Table:
    sizes = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, plans[0].sizes))
    usable = topology.chip.per_device.usable_memory / GIB
    title = f"{topology}: {topology.devices} devices, mesh {sizes}; GiB on each of {usable:.2f} usable"
    table = Table("stage", "parameters", "optimizer", "online teachers", "temporaries", "peak", "fits", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for plan in plans:
        state = plan.state
        cells = [
            f"{(state['trained'] + state['frozen']) / GIB:.3f}",
            f"{state['optimizer'] / GIB:.3f}",
            f"{state['teachers'] / GIB:.3f}",
        ]
        if plan.analysis is not None and plan.estimate is not None:
            peak = plan.estimate.needed_bytes
            spare = (plan.estimate.usable_bytes - peak) / GIB
            fits = "yes" if plan.estimate.fits else f"no, {-spare:.2f} too much"
            cells += [f"{plan.analysis.memory.temporaries / GIB:.2f}", f"{peak / GIB:.2f}", fits]
        elif plan.too_large is not None:
            over = (plan.too_large.needed - plan.too_large.available) / GIB
            cells += ["", f"{plan.too_large.needed / GIB:.2f}", f"no, {over:.2f} too much"]
        table.add_row(_name(plan), *cells)
    return table


def _time(topology: Topology | Machine, plans: Sequence[StagePlan]) -> Table:
    title = f"{topology}: the least time of a step, at the chip's published rates"
    table = Table("stage", "TFLOP", "compute ms", "memory ms", "links ms", "bound by", "texts/s", "hours", title=title)
    for column in (*table.columns[1:5], *table.columns[6:]):
        column.justify = "right"
    for plan in plans:
        analysis, floor = plan.analysis, plan.estimate
        assert analysis is not None
        assert floor is not None
        table.add_row(
            _name(plan),
            f"{analysis.flops / 1e12:.2f}",
            f"{floor.compute_seconds * 1e3:.1f}",
            f"{floor.memory_seconds * 1e3:.1f}",
            f"{floor.interconnect_seconds * 1e3:.1f}",
            floor.bound_by,
            f"{floor.texts_per_second:,.0f}",
            f"{plan.hours:.2f}",
        )
    table.caption = (
        "Per device. A real step is slower: floors overlap only in part, and neither element-wise work nor latency is"
        " counted."
    )
    return table


def _collectives(plans: Sequence[StagePlan]) -> Table:
    """What devices send to each other in a step, by kind and axis."""
    table = Table("stage", "collective", "axis", "times", "MB sent by a device", title="Communication of a step")
    for column in table.columns[3:]:
        column.justify = "right"
    for plan in plans:
        assert plan.analysis is not None
        sent: Counter[tuple[str, str]] = Counter()
        times: Counter[tuple[str, str]] = Counter()
        for one in plan.analysis.collectives:
            if one.axes:
                key = (one.kind, "+".join(one.axes))
                sent[key] += one.total_sent  # pyright: ignore[reportArgumentType]
                times[key] += one.executions  # pyright: ignore[reportArgumentType]
        for key, amount in sent.most_common():
            table.add_row(_name(plan), *key, f"{times[key]:,.0f}", f"{amount / 1e6:,.1f}")
    return table


def _totals(topology: Topology | Machine, plans: Sequence[StagePlan], out: Console) -> None:
    """Hours of the recipe, each stage as the recipe has it or as it was made to fit."""
    by_stage: dict[str, StagePlan] = {}
    for plan in plans:
        if plan.fits:
            by_stage.setdefault(plan.stage.name, plan)
    names = list(dict.fromkeys(plan.stage.name for plan in plans))
    if missing := [name for name in names if name not in by_stage]:
        out.print(f"[bold]{topology}: {', '.join(missing)} do not fit.[/]")
        return
    changed = sorted({setting for plan in by_stage.values() for setting in plan.settings})
    hours = sum(plan.hours for plan in by_stage.values())
    seconds = sum(plan.compile_seconds for plan in plans)
    out.print(
        f"[bold]{topology}: the recipe takes at least {hours:.2f} hours, {hours * topology.chips:.1f} chip-hours[/]"
        f"{' with ' + ' '.join(changed) if changed else ''} (compiled in {seconds:.0f} s).",
        highlight=False,
    )
