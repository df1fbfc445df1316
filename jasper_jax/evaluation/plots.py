"""Two plots of a run: its losses by step, and the student's nDCG@10 by dimension.

matplotlib is an optional dependency (extra ``plot``), imported when a plot is drawn.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jasper_jax.evaluation.curves import one_per_dimension, points, read_metrics, running_median, stage_of
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows, retrieval_tests
from jasper_jax.evaluation.figures import default_style, new_figure, save_figure
from jasper_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, distinguishable with any colour vision; its yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_INK, _FAINT = "#222222", "#777777"
_SMALL: dict[str, Any] = {"fontsize": 8, "color": _FAINT}
_MOST_PANELS = 60
_LOG = 20  # values that differ by more than this factor get a logarithmic axis


# ---------------------------------------------------------------------------------------------- training


@default_style()
def plot_training(metrics: str | os.PathLike, out_png: str | os.PathLike) -> None:
    """Total loss and each loss term by global step, from a run's ``metrics.jsonl``.

    Faint lines are single steps, thick ones their running median, dots the held-out texts; vertical lines divide the
    stages. Of steps that a resumed run repeated, the last values are drawn.
    """
    steps, evaluations = read_metrics(metrics)
    names = list(dict.fromkeys(name for step in steps for name in step["terms"]))
    heads = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    colour = dict(zip(heads, _cycle(len(heads))))
    terms: dict[str, dict[str, str]] = {}  # loss term -> {head: key of the event's terms}
    for name in names:
        terms.setdefault(name.rpartition("/")[2], {})[name.rpartition("/")[0]] = name

    count = 1 + len(terms)
    if count > _MOST_PANELS:
        raise UserError(f"{metrics}: has {count - 1:,} loss terms; at most {_MOST_PANELS - 1} are drawn")
    figure = new_figure(10, 2.9 * math.ceil(count / 2), "constrained")
    panels = list(figure.subplots(math.ceil(count / 2), min(2, count), squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes, term in zip(panels[1:], terms):
        _title(axes, f"{term} loss", pad=14)
        ends = []
        for head, name in terms[term].items():
            last = _curve(axes, steps, evaluations, lambda e, name=name: e["terms"].get(name), colour[head])
            ends.append((head, last, colour[head]))
        _loss_axes(axes, steps)
        _end_labels(axes, ends)
    _title(panels[0], "total loss", pad=14)
    _curve(panels[0], steps, evaluations, lambda e: e.get("loss"), _INK)
    _loss_axes(panels[0], steps)
    figure.suptitle(f"training of {Path(metrics).absolute().parent.name}", fontsize=10, color=_FAINT, x=0.01, ha="left")
    note = "line: running median" + ("\ndots: held-out texts" if evaluations else "")
    panels[0].text(0.985, 0.95, note, transform=panels[0].transAxes, ha="right", va="top", **_SMALL)
    save_figure(figure, out_png)


def _curve(axes: Axes, steps: list[dict], evaluations: list[dict], read: Any, colour: str) -> float:
    """Draw one quantity, with a line for each stage; returns the last value of its running median."""
    last = math.nan
    for stage in sorted({stage_of(step) for step in steps}):
        x, y = points((step for step in steps if stage_of(step) == stage), read)
        if len(x):
            place, smooth = running_median(y)
            marker = "o" if len(x) == 1 else None
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.7)
            axes.plot(x[place], smooth, color=colour, linewidth=1.7, marker=marker, markersize=3)
            last = float(smooth[-1])
    x, y = points(evaluations, read)
    axes.plot(x, y, "o", color=colour, markeredgecolor="white", markeredgewidth=0.7, markersize=5.5)
    return last


def _loss_axes(axes: Axes, steps: list[dict]) -> None:
    """Set scale and labels; draw a line at each stage's end and its name above its part of the axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > _LOG * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    elif len(values) and values.max() > 0:
        axes.set_ylim(bottom=min(0.0, values.min()))
    first, last = steps[0]["global_step"], steps[-1]["global_step"]
    room = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)
    axes.set_xlabel("step", fontsize=9, color=_FAINT)
    _style(axes)
    spans: dict[int, list[dict]] = {}
    for step in steps:
        spans.setdefault(stage_of(step), []).append(step)
    for index, span in sorted(spans.items()):
        start, end = span[0]["global_step"], span[-1]["global_step"]
        if index != min(spans):
            axes.axvline(start - 0.5, color=_FAINT, linewidth=0.8, linestyle=(0, (4, 3)))
        name, where = f"stage {span[0].get('stage') or index + 1}", ((start + end) / 2, 1.01)
        axes.annotate(name, where, xycoords=axes.get_xaxis_transform(), ha="center", **_SMALL)


# -------------------------------------------------------------------------------------------- dimensions


@default_style()
def plot_dimensions(evaluation: Evaluation, out_png: str | os.PathLike, test: str | None = None) -> None:
    """nDCG@10 of the final student by dimension.

    Lines: the teachers and the untrained student. Squares: the teachers' vectors, shortened by an SVD.

    ``test`` names the retrieval test; None takes the first.
    """
    names = retrieval_tests(evaluation)
    if not names or (test is not None and test not in names):
        raise UserError(f"no retrieval test {test or ''} to plot; the evaluation has {', '.join(names) or 'none'}")
    test = test or names[0]
    students = [row for row in final_rows(evaluation) if test in row.retrieval]
    others = [row for row in evaluation.rows if test in row.retrieval and row not in students]
    references = [row for row in others if row.role in ("teacher", "teachers")]
    # Before training, a line for each provider, at its largest dimension.
    before = sorted((row for row in others if row.stage == 0), key=lambda row: row.dim)
    references += {row.provider: row for row in before}.values()

    figure = new_figure(7.6, 4.4, "constrained")
    axes = figure.subplots()
    recipe = evaluation.metadata.get("recipe")
    _title(axes, f"{f'{recipe}: ' if recipe else ''}nDCG@10 on {test}, with 95% intervals")
    axes.set_xlabel("dimension of the student's vectors", fontsize=9, color=_FAINT)
    _style(axes)
    ends = []
    for row, shade in zip(references, _cycle(len(references), skip=1)):
        value, untrained = row.retrieval[test].ndcg10.value, row.role == "student"
        shade = _FAINT if untrained else shade
        axes.axhline(value, color=shade, linewidth=1.4, linestyle=":" if untrained else (0, (6, 3)))
        ends.append((f"{row.provider} ({row.dim})  {value:.3f}", value, shade))
        svd = sorted((r.dim, r.retrieval[test].ndcg10.value) for r in others if r.provider == f"{row.provider}, SVD")
        if svd:
            axes.plot(*zip(*svd), "s", color=shade, linestyle=(0, (1, 2)), linewidth=1.2, markersize=3.5)
    if any(row.role == "baseline" for row in others):
        axes.text(
            0.985, 0.03, "squares: teachers' vectors through an SVD", transform=axes.transAxes, ha="right", **_SMALL
        )
    if students:
        _student_line(axes, students, test)
        dims = sorted({row.dim for row in students})
        axes.set_xscale("log", base=2)
        axes.set_xticks(dims, [str(dim) for dim in dims])
        axes.set_xlim(dims[0] / 1.5, dims[-1] * 1.3)
        axes.minorticks_off()
    else:
        axes.set_xticks([])
    axes.margins(y=0.12)
    _end_labels(axes, ends)
    save_figure(figure, out_png)


def _student_line(axes: Axes, rows: list[EvaluationRow], test: str) -> None:
    """Draw a line through the dimensions. Where two heads provide one, it takes the head that is shorter at its full
    length; the other's marker is hollow."""
    rows = sorted(rows, key=lambda row: row.dim)
    chosen = one_per_dimension(rows)
    values = [row.retrieval[test].ndcg10.value for row in chosen]
    axes.plot([row.dim for row in chosen], values, color=COLOURS[0], linewidth=2)
    text: dict[str, Any] = {"textcoords": "offset points", "color": COLOURS[0]}
    for row in rows:
        score = row.retrieval[test].ndcg10
        if row not in chosen:
            axes.plot(row.dim * 1.15, score.value, "o", color=COLOURS[0], markerfacecolor="white", zorder=3)
            axes.annotate(row.head or "", (row.dim * 1.15, score.value), xytext=(5, -3), fontsize=8, **text)
            continue
        error = [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
        axes.errorbar(row.dim, score.value, error, fmt="o", color=COLOURS[0], capsize=3, elinewidth=1.2)
        at = (row.dim, score.low)
        axes.annotate(f"{score.value:.3f}", at, xytext=(-4, -12), ha="center", fontsize=8.5, **text)
    first = chosen[0]
    at = (first.dim, first.retrieval[test].ndcg10.high)
    axes.annotate(first.provider, at, xytext=(0, 6), ha="center", fontsize=9, **text)


# ------------------------------------------------------------------------------------------------- drawing


def _cycle(count: int, skip: int = 0) -> list[str]:
    return [COLOURS[(k + skip) % len(COLOURS)] for k in range(count)]


def _title(axes: Axes, text: str, pad: float | None = None) -> None:
    axes.set_title(text, loc="left", fontsize=10, color=_INK, pad=pad)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=_FAINT, labelsize=8.5, which="both")
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.8)
    axes.set_axisbelow(True)


def _end_labels(axes: Axes, ends: list[tuple[str, float, str]]) -> None:
    """Write labels (name, height, colour) at the right of the axes, moved apart if they would overlap."""
    ends = sorted((end for end in ends if end[0] and math.isfinite(end[1])), key=lambda end: end[1])
    axes.get_ylim()  # fixes the limits, on which the transform depends
    gap = 13 / (axes.bbox.height * 72 / axes.figure.dpi)
    to_axes = axes.transData + axes.transAxes.inverted()
    place = -math.inf
    for name, height, colour in ends:
        place = max(to_axes.transform((1.0, height))[1], place + gap)
        axes.annotate(name, (1.01, place), xycoords="axes fraction", va="center", fontsize=8.5, color=colour)
