"""Every loss of a run by step, with its stages and the held-out texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jasper_jax.evaluation.curves import points, running_median, stage_of
from jasper_jax.reporting.figures import Figure, Trace, colour, plain, rounded

_MOST_POINTS = 800
"""Single steps of a curve that are drawn."""
_LOG = 20
"""Values that differ by more than this factor get a logarithmic axis."""

Events = list[dict[str, Any]]


def loss_figures(steps: Events, held_out: Events) -> list[Figure]:
    """The total loss, and each term with a curve for each head."""
    names = list(dict.fromkeys(name for step in steps for name in step["terms"]))
    heads = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    terms: dict[str, list[str]] = {}
    for name in names:
        terms.setdefault(name.rpartition("/")[2], []).append(name)
    whole = _figure("total loss", steps, held_out, [("", "@ink", lambda event: event.get("loss"))])
    return [
        whole,
        *(
            _figure(
                f"{term} loss" if term != "total" else "total of each head",
                steps,
                held_out,
                [
                    (head, colour(heads.index(head)), lambda event, name=name: event["terms"].get(name))
                    for name in terms[term]
                    for head in [name.rpartition("/")[0]]
                ],
            )
            for term in terms
        ),
    ]


def _figure(
    title: str, steps: Events, held_out: Events, curves: list[tuple[str, str, Callable[[dict[str, Any]], Any]]]
) -> Figure:
    traces: list[Trace] = []
    for head, shade, read in curves:
        traces += loss_curve(head or "training", shade, steps, held_out, read)
    values = np.array([y for trace in traces for y in trace["y"] if y is not None], float)
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {},
        **stage_marks(steps),
        "showlegend": len(curves) > 1,
    }
    if len(values) and values.min() > 0 and values.max() > _LOG * values.min():
        layout["yaxis"] = {"type": "log"}
    elif len(values) and values.min() >= 0:
        layout["yaxis"] = {"rangemode": "tozero"}
    return Figure(title, traces, layout)


def loss_curve(
    name: str, shade: str, steps: Events, held_out: Events, read: Callable[[dict[str, Any]], Any]
) -> list[Trace]:
    """Faint single steps, their running median, a line for each stage, and dots for the held-out texts."""
    base: Trace = {"type": "scatter", "legendgroup": plain(name), "name": plain(name)}
    traces: list[Trace] = []
    for stage in sorted({stage_of(step) for step in steps}):
        x, y = points((step for step in steps if stage_of(step) == stage), read)
        if not len(x):
            continue
        place, smooth = running_median(y)
        some = np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int)
        faint = {"mode": "lines", "opacity": 0.28, "line": {"color": shade, "width": 1}, "hoverinfo": "skip"}
        line = {"mode": "lines" if len(x) > 1 else "markers", "line": {"color": shade, "width": 2.2}}
        traces.append(base | faint | {"x": rounded(x[some]), "y": rounded(y[some], 4), "showlegend": False})
        drawn = any(trace.get("showlegend", True) for trace in traces)
        hover = {"hovertemplate": "step %{x}: %{y:.4g}<extra>%{fullData.name}, median</extra>", "showlegend": not drawn}
        traces.append(
            base | line | hover | {"x": rounded(x[place]), "y": rounded(smooth, 4), "marker": {"color": shade}}
        )
    x, y = points(held_out, read)
    if len(x):
        dots = {"color": shade, "size": 8, "line": {"color": "@paper", "width": 1.2}}
        traces.append(
            base
            | {"mode": "markers", "marker": dots, "x": rounded(x), "y": rounded(y, 4), "showlegend": False}
            | {"hovertemplate": "step %{x}: %{y:.4g}<extra>%{fullData.name}, held out</extra>"}
        )
    return traces


def stage_marks(steps: Events) -> dict[str, Any]:
    """Lines between the stages and their names above, as ``shapes`` and ``annotations`` of a layout."""
    spans: dict[int, Events] = {}
    for step in steps:
        spans.setdefault(stage_of(step), []).append(step)
    shapes, names = [], []
    for index, span in sorted(spans.items()):
        start, end = span[0]["global_step"], span[-1]["global_step"]
        if index != min(spans):
            dash = {"color": "@faint", "width": 1, "dash": "dot"}
            shapes.append(
                {"type": "line", "x0": start - 0.5, "x1": start - 0.5, "yref": "paper", "y0": 0, "y1": 1, "line": dash}
            )
        names.append(
            {
                "x": (start + end) / 2,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": plain(str(span[0].get("stage") or index + 1)),
                "font": {"size": 11, "color": "@faint"},
            }
        )
    return {"shapes": shapes, "annotations": names}
