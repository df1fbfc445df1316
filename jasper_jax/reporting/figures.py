"""Figures as plain trees for Plotly. Colours are tokens (``@c0``, ``@ink``), which the page replaces by those of its
light or dark theme."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Trace = dict[str, Any]
COLOURS = 6


@dataclass
class Figure:
    """``title`` stands above it, or among the choices of its chart."""

    title: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)

    def tree(self) -> dict[str, Any]:
        """As JSON; numbers that are not finite are None."""
        return finite({"title": self.title, "data": self.traces, "layout": self.layout})


@dataclass
class Chart:
    """One place on the page, in which the reader chooses among ``figures``."""

    key: str
    title: str
    figures: list[Figure]
    note: str = ""
    height: int = 400


def colour(index: int) -> str:
    """The token of a colour; after ``COLOURS`` they repeat."""
    return f"@c{index % COLOURS}"


def plain(text: str) -> str:
    """``text`` without meaning for Plotly, which reads some HTML in the names and labels it draws."""
    return html.escape(text, quote=False)


def finite(value: Any) -> Any:
    """``value`` with None for every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def rounded(values: Iterable[float], digits: int = 5) -> list[float | None]:
    """Values to ``digits`` significant digits: a page is read, and sent."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def log2_axis(title: str, ticks: Iterable[int]) -> dict[str, Any]:
    """A logarithmic axis with a label at each of ``ticks``, unless it is too close to the next."""
    kept: list[int] = []
    for tick in sorted(set(ticks)):
        if not kept or tick >= 1.3 * kept[-1]:
            kept.append(tick)
    return {"title": {"text": title}, "type": "log", "tickvals": kept, "ticktext": [f"{tick:,}" for tick in kept]}


def time_figure(runs: Mapping[str, Mapping[str, float]]) -> Figure:
    """A bar for each run, of its seconds by phase."""
    phases = list(dict.fromkeys(phase for seconds in runs.values() for phase in seconds))
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(phase),
            "y": [plain(run) for run in runs],
            "x": rounded(seconds.get(phase, 0.0) for seconds in runs.values()),
            "marker": {"color": colour(index), "opacity": 1 if index < COLOURS else 0.55},
            "hovertemplate": "%{fullData.name}: %{x:,.0f} s<extra></extra>",
        }
        for index, phase in enumerate(phases)
    ]
    axis = {"type": "category", "autorange": "reversed", "showticklabels": len(runs) > 1}
    return Figure(
        "seconds by phase", traces, {"barmode": "stack", "yaxis": axis, "xaxis": {"title": {"text": "seconds"}}}
    )
