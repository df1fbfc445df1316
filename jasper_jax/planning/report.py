"""Print a plan: tables of memory, time and communication, and what the figures leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from jasper_jax.parameters.sharding import AXES
from jasper_jax.parameters.table import leaf_table
from jasper_jax.planning.estimate import REACHED
from jasper_jax.planning.machine import FRACTION, Machine, Target
from jasper_jax.planning.plan import StagePlan
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.tables import print_table

GIB = 2**30


def print_plan(target: Target, plans: Sequence[StagePlan], out: Console) -> None:
    """Print what the stages need on ``target``; ``plans`` in the order in which they were made."""
    print_table(_memory(target, plans), out)
    print_table(leaf_table(max((plan.stage.leaves for plan in plans), key=len)), out)
    compiled = [plan for plan in plans if plan.estimate is not None]
    if compiled:
        print_table(_time(target, compiled), out)
        print_table(_collectives(compiled), out)
    _print_total(target, plans, out)
    if isinstance(target, Machine):
        card = target.card.usable_memory / GIB
        out.print(
            f"{target}: of a card's {card:.2f} GiB JAX takes {target.fraction:.0%} ({FRACTION}). XLA's GPU compiler"
            " chose kernels by its cost model; on the card it times them, and may take others."
        )
    for stage in {plan.stage.name: plan.stage for plan in plans if plan.stage.empty > 0.2 * plan.stage.rows}.values():
        out.print(
            f"{stage.name}: {stage.empty:,} of the {stage.rows:,} rows that the devices compute in a step are empty;"
            " with as many more in stages[].batch_size it takes as long"
        )
    for plan in compiled:
        assert plan.analysis is not None
        for name in dict.fromkeys(k.op_name.rpartition("/")[2] or k.target for k in plan.analysis.unknown_kernels):
            out.print(f"{plan.stage.name}: operations of the kernel {name} are not counted")
        for loop in plan.analysis.unknown_loops:
            out.print(f"{plan.stage.name}: the length of the loop {loop} is unknown; it is counted as one iteration")


def _label(plan: StagePlan) -> str:
    """The stage's name, and below it the settings it was compiled with."""
    return "\n".join([plan.stage.name, *plan.settings])


def _memory(target: Target, plans: Sequence[StagePlan]) -> Table:
    """GiB on a device: what lasts from step to step, temporaries, the peak, and whether it fits."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, plans[0].mesh_sizes))
    usable = target.chip.per_device.usable_memory / GIB
    title = f"{target}: {target.devices} devices, mesh {sizes}; GiB on each of {usable:.2f} usable"
    table = Table("stage", "parameters", "optimizer", "online teachers", "temporaries", "peak", "fits", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for plan in plans:
        state = plan.stage.state_bytes
        cells = [
            f"{(state['trained'] + state['frozen']) / GIB:.3f}",
            f"{state['optimizer'] / GIB:.3f}",
            f"{state['teachers'] / GIB:.3f}",
        ]
        if plan.analysis is not None and plan.estimate is not None:
            peak = plan.estimate.needed_bytes
            excess = (peak - plan.estimate.usable_bytes) / GIB
            fits = "yes" if plan.estimate.fits else f"no, {excess:.2f} too much"
            cells += [f"{plan.analysis.memory.temporaries / GIB:.2f}", f"{peak / GIB:.2f}", fits]
        elif plan.too_large is not None:
            excess = (plan.too_large.needed - plan.too_large.available) / GIB
            cells += ["", f"{plan.too_large.needed / GIB:.2f}", f"no, {excess:.2f} too much"]
        table.add_row(_label(plan), *cells)
    return table


def _time(target: Target, plans: Sequence[StagePlan]) -> Table:
    """Operations and the lower bounds of a step's time."""
    title = f"{target}: the least time of a step, at the chip's published rates"
    table = Table(
        "stage",
        "TFLOP",
        "compute ms",
        "memory ms",
        "links ms",
        "network ms",
        "bound by",
        "texts/s",
        "hours",
        "likely ms",
        "likely MFU",
        title=title,
    )
    for column in (*table.columns[1:6], *table.columns[7:]):
        column.justify = "right"
    for plan in plans:
        analysis, bounds = plan.analysis, plan.estimate
        assert analysis is not None
        assert bounds is not None
        table.add_row(
            _label(plan),
            f"{analysis.flops / 1e12:.2f}",
            f"{bounds.compute_seconds * 1e3:.1f}",
            f"{bounds.memory_seconds * 1e3:.1f}",
            f"{bounds.interconnect_seconds * 1e3:.1f}",
            f"{bounds.network_seconds * 1e3:.1f}",
            bounds.bound_by,
            f"{bounds.texts_per_second:,.0f}",
            f"{plan.hours:.2f}",
            f"{bounds.likely_seconds * 1e3:.0f}",
            "" if (mfu := plan.likely_mfu(target)) is None else f"{mfu:.0%}",
        )
    table.caption = (
        "Per device. A real step is slower: compute, memory, links and network overlap only in part, and neither"
        " element-wise work nor latency is counted. Likely assumes, without a measurement, that kernels run one"
        f" after another, each at {REACHED:.0%} of a rate, and hide all communication; MFU is of texts at full length."
    )
    return table


def _collectives(plans: Sequence[StagePlan]) -> Table:
    """Communication of a step, by kind of collective and mesh axes."""
    table = Table("stage", "collective", "axis", "times", "MB sent by a device", title="Communication of a step")
    for column in table.columns[3:]:
        column.justify = "right"
    for plan in plans:
        assert plan.analysis is not None
        sent: Counter[tuple[str, str]] = Counter()
        times: Counter[tuple[str, str]] = Counter()
        for collective in plan.analysis.collectives:
            if collective.axes:
                key = (collective.kind, "+".join(collective.axes))
                sent[key] += collective.total_sent  # pyright: ignore[reportArgumentType]
                times[key] += collective.executions  # pyright: ignore[reportArgumentType]
        for key, amount in sent.most_common():
            table.add_row(_label(plan), *key, f"{times[key]:,.0f}", f"{amount / 1e6:,.1f}")
    return table


def _print_total(target: Target, plans: Sequence[StagePlan], out: Console) -> None:
    """Print the hours of all stages, each with its first settings that fit."""
    by_stage: dict[str, StagePlan] = {}
    for plan in plans:
        if plan.fits:
            by_stage.setdefault(plan.stage.name, plan)
    names = list(dict.fromkeys(plan.stage.name for plan in plans))
    if missing := [name for name in names if name not in by_stage]:
        out.print(bold(f"{target}: {', '.join(missing)} do not fit."))
        return
    changed = sorted({setting for plan in by_stage.values() for setting in plan.settings})
    hours = sum(plan.hours for plan in by_stage.values())
    seconds = sum(plan.compile_seconds for plan in plans)
    out.print(
        bold(
            f"{target}: the recipe takes at least {hours:.2f} hours, {hours * target.chips:.1f} chip-hours",
            f"{' with ' + ' '.join(changed) if changed else ''} (compiled in {seconds:.0f} s).",
        )
    )
