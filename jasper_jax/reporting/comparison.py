"""Several runs on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jasper_jax.evaluation.by_text import ByText, TestTexts
from jasper_jax.evaluation.curves import one_per_dimension
from jasper_jax.evaluation.evaluation import final_rows, retained
from jasper_jax.evaluation.retrieval import bootstrap
from jasper_jax.export.public import public_recipe
from jasper_jax.reporting.figures import Chart, Figure, Trace, colour, log2_axis, plain, time_figure
from jasper_jax.reporting.losses import loss_curve
from jasper_jax.reporting.page import Page, Section
from jasper_jax.reporting.quality import FLOAT32, Measure, measures, score_trace
from jasper_jax.reporting.run_files import RunFiles
from jasper_jax.reporting.run_report import lead
from jasper_jax.reporting.tables import Table, as_cell, scored
from jasper_jax.reporting.text_figures import provider_label
from jasper_jax.runtime.shown import shown


def comparison_page(runs: Sequence[RunFiles]) -> Page:
    """The page of ``runs``, the first of which the others are compared with."""
    names = run_names(runs)
    sections = [_overview(runs, names), _quality(runs, names), *_queries(runs, names), *_losses(runs, names)]
    sections += [*_time(runs, names), _recipes(runs, names)]
    return Page(
        ", ".join(names), f"{len(runs)} runs; {names[0]} is what the others are compared with.", sections=sections
    )


def run_names(runs: Sequence[RunFiles]) -> list[str]:
    """The recipes' names; a run whose name another has gets its folder's, or its number."""
    names = [run.recipe.name for run in runs]
    folders = [run.folder.absolute().name for run in runs]
    names = [name if names.count(name) == 1 else folder for name, folder in zip(names, folders)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _overview(runs: Sequence[RunFiles], names: list[str]) -> Section:
    made = Table(["run", "what was distilled from what", "steps", "hours"], caption="Hours: of the whole run")
    table = Table(
        ["run", "dim", "bytes", "mean nDCG@10", "of best teacher", "agreement", "M weights"],
        caption="Every dimension of every final student",
    )
    for run, name in zip(runs, names):
        hours = as_cell(sum(run.seconds.values()) / 3600 if run.seconds else None, "{:.2f}")
        made.add(name, lead(run.recipe), len(run.steps), hours)
        kept = {(k.head, k.dim): k for k in retained(run.evaluation)} if run.evaluation else {}
        for row in final_rows(run.evaluation) if run.evaluation else ():
            k = kept.get((row.head, row.dim))
            table.add(
                name,
                as_cell(row.dim, "{}"),
                FLOAT32 * row.dim,
                scored(k.ndcg10 if k else None),
                as_cell(k.of_teacher if k else None, "{:.1f}%"),
                scored(row.agreement.spearman if row.agreement else None),
                as_cell(None if row.weights is None else row.weights / 1e6, "{:.1f}"),
            )
    return Section("runs", "Runs", tables=[made, *([table] if table.rows else [])])


def _quality(runs: Sequence[RunFiles], names: list[str]) -> Section:
    of_runs = [{m.title: m for m in measures(run.evaluation)} if run.evaluation else {} for run in runs]
    titles = list(dict.fromkeys(title for found in of_runs for title in found))
    section = Section("quality", "Quality", "The final students; bars are 95% bootstrap intervals over queries.")
    if not titles:
        section.missing = "None of the runs was evaluated: jasper evaluate scores a run."
        return section
    for key, title, size in (("dimension", "By dimension", 1), ("bytes", "By bytes per vector", FLOAT32)):
        figures = [_scores(runs, names, [found.get(t) for found in of_runs], t, size) for t in titles]
        section.charts.append(Chart(key, title, figures, height=430))
    return section


def _scores(runs: Sequence[RunFiles], names: list[str], found: list[Measure | None], title: str, size: int) -> Figure:
    traces: list[Trace] = []
    dims: set[int] = set()
    for index, (run, name, measure) in enumerate(zip(runs, names, found)):
        if measure is None or run.evaluation is None:
            continue
        students = one_per_dimension([row for row in final_rows(run.evaluation) if measure.of(row)])
        traces.append(score_trace(name, students, measure, size, colour(index), symbol="circle", marker=8))
        teachers = [row for row in run.evaluation.rows if row.role in ("teacher", "teachers") and measure.of(row)]
        if teachers:
            label = f"teachers of {name}"
            shade = colour(index)
            traces.append(
                score_trace(label, teachers, measure, size, shade, symbol="diamond-open", mode="markers", marker=9)
                | {"visible": "legendonly" if index else True}
            )
        dims |= {size * row.dim for row in (*students, *teachers)}
    axis = log2_axis("dimensions" if size == 1 else "bytes per vector", dims)
    return Figure(title, traces, {"xaxis": axis, "yaxis": {"title": {"text": plain(title)}}})


def _queries(runs: Sequence[RunFiles], names: list[str]) -> list[Section]:
    """The students on the same queries, each with the first run's; nothing if no test is in two runs."""
    table = Table(
        ["test", "run", "against", "queries", "better", "worse", "equal", "mean difference", "95% low", "high"],
        caption="nDCG@10 of the same queries, at each student's default dimension and its shortest",
    )
    base = runs[0].by_text
    for run, name in zip(runs[1:], names[1:]):
        if base is None or run.by_text is None:
            continue
        for test, theirs in run.by_text.retrieval.items():
            own = base.retrieval.get(test)
            if own is None or own.query_sha256 != theirs.query_sha256:
                continue
            if len(own.ndcg10[0]) != len(theirs.ndcg10[0]):  # another number of them was kept
                continue
            for one, other in zip(_students(run.by_text), _students(base)):
                label = f"{name}, {provider_label(run.by_text.providers[one])}"
                against = f"{names[0]}, {provider_label(base.providers[other])}"
                table.add(test, label, against, *_paired(theirs, one, own, other))
    if not table.rows:
        return []
    text = "Runs with the same test are compared query by query, which tells small differences from chance."
    return [Section("queries", "The same queries", text, tables=[table])]


def _students(found: ByText) -> list[int]:
    return [i for i, provider in enumerate(found.providers) if provider.role == "student"]


def _paired(one: TestTexts, first: int, other: TestTexts, second: int) -> list[Any]:
    a, b = np.array(one.ndcg10[first]), np.array(other.ndcg10[second])
    (mean,) = bootstrap((a - b)[:, None])
    better, worse = int((a > b).sum()), int((a < b).sum())
    bounds = [as_cell(x, "{:+.3f}") for x in (mean.value, mean.low, mean.high)]
    return [len(a), better, worse, len(a) - better - worse, *bounds]


def _losses(runs: Sequence[RunFiles], names: list[str]) -> list[Section]:
    trained = [(run, name, colour(i)) for i, (run, name) in enumerate(zip(runs, names)) if run.steps]
    if not trained:
        return []
    terms = dict.fromkeys(term for run, _, _ in trained for step in run.steps for term in step["terms"])

    def figure(title: str, read: Callable[[dict[str, Any]], Any]) -> Figure:
        curves = [t for run, name, shade in trained for t in loss_curve(name, shade, run.steps, run.held_out, read)]
        return Figure(title, curves, {"xaxis": {"title": {"text": "step"}}})

    figures = [
        figure("total loss", lambda event: event.get("loss")),
        *(figure(term, lambda event, term=term: event["terms"].get(term)) for term in terms),
    ]
    text = "Faint: single steps. Line: running median. Dots: held-out texts."
    return [Section("losses", "Losses", text, charts=[Chart("loss", "Loss", figures, height=400)])]


def _time(runs: Sequence[RunFiles], names: list[str]) -> list[Section]:
    timed = {name: run.seconds for run, name in zip(runs, names) if run.seconds}
    if not timed:
        return []
    phases = dict.fromkeys(phase for seconds in timed.values() for phase in seconds)
    table = Table(["phase", *timed], caption="Seconds, summed over all commands on a run")
    for phase in phases:
        table.add(phase, *(as_cell(seconds.get(phase), "{:,.1f}") for seconds in timed.values()))
    table.add("total", *(as_cell(sum(seconds.values()), "{:,.1f}") for seconds in timed.values()))
    chart = Chart("time", "Seconds by phase", [time_figure(timed)], height=110 + 44 * len(timed))
    return [Section("time", "Time and cost", charts=[chart], tables=[table])]


def _recipes(runs: Sequence[RunFiles], names: list[str]) -> Section:
    """The keys in which the recipes differ, with the value of each."""
    flat = [dict(_leaves(public_recipe(run.recipe), "")) for run in runs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    changed = [key for key in keys if len({leaves.get(key) for leaves in flat}) > 1 and key != "name"]
    section = Section("recipes", "Where the recipes differ")
    if not changed:
        section.missing = "The recipes are the same."
        return section
    table = Table(["key", *names], caption="– stands for a key that a recipe does not have")
    for key in changed:
        table.add(key, *(leaves.get(key) for leaves in flat))
    section.tables = [table]
    return section


def _leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """``key.0.key`` and value of everything below ``value``, as text that may be printed."""
    if isinstance(value, dict | list) and value:
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{key}.{name}".lstrip("."))
    else:
        yield key, "null" if value is None else shown(str(value))
