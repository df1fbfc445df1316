"""Figures of single texts: the density of agreement, and the map of held-out texts."""

from __future__ import annotations

import numpy as np

from jasper_jax.evaluation.by_text import ByText, Provider
from jasper_jax.reporting.figures import Figure, plain, rounded

_FEWEST = 64
"""Texts from which neighbours are placed near each other (t-SNE); fewer are shown on two principal components."""


def provider_label(provider: Provider) -> str:
    """Its name in choices and columns: ``student (256)``."""
    return f"{'student' if provider.role == 'student' else provider.name} ({provider.dim})"


def density_figures(found: ByText) -> list[Figure]:
    """For each student and teacher: how many pairs of texts have which two similarities."""
    figures = []
    for density in found.densities:
        student, teacher = found.providers[density.student], found.providers[density.teacher]
        counts = np.array(density.counts, float)
        edges = np.linspace(density.low, density.high, len(counts) + 1)
        middles = rounded((edges[:-1] + edges[1:]) / 2, 4)
        with np.errstate(divide="ignore"):
            shades = np.log10(counts)
        heat = {
            "type": "heatmap",
            "x": middles,
            "y": middles,
            "z": [rounded(row, 3) for row in shades.tolist()],
            "customdata": counts.astype(int).tolist(),
            "colorscale": "@density",
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": "teacher %{x:.2f}, student %{y:.2f}: %{customdata:,} pairs<extra></extra>",
        }
        ends = [density.low, density.high]
        line = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip", "showlegend": False}
        line["line"] = {"color": "@faint", "width": 1, "dash": "dash"}
        figures.append(
            Figure(
                f"{provider_label(student)}, {provider_label(teacher)}",
                [heat, line],
                {
                    "xaxis": {"title": {"text": plain(f"similarity to {teacher.name}")}, "range": ends},
                    "yaxis": {"title": {"text": "similarity to the student"}, "range": ends},
                },
            )
        )
    return figures


def map_figures(found: ByText) -> list[Figure]:
    """The same map for each student and teacher, its texts coloured by their disagreement."""
    if not found.map:
        return []
    places = layout(np.array([text.place for text in found.map]))
    x, y = (rounded(column, 4) for column in places.T.tolist())
    hidden = {"visible": False, "fixedrange": True}
    figures = []
    for s, student in enumerate(p for p in found.providers if p.role == "student"):
        for t, teacher in enumerate(p for p in found.providers if p.role == "teacher"):
            amount = [text.disagreement[s][t] for text in found.map]
            most = float(np.quantile(amount, 0.98))
            trace = {
                "type": "scatter",
                "mode": "markers",
                "x": x,
                "y": y,
                "customdata": list(range(len(found.map))),
                "text": [_lines(text.text) for text in found.map],
                "marker": {
                    "color": rounded(amount, 4),
                    "cmin": min(amount),
                    "cmax": max(most, min(amount) + 1e-6),
                    "colorscale": "@disagreement",
                    "size": [7 if text.kind == "query" else 9 for text in found.map],
                    "symbol": ["diamond" if text.kind == "query" else "circle" for text in found.map],
                    "line": {"width": 0.5, "color": "@paper"},
                    "colorbar": {"title": {"text": "disagree"}, "thickness": 10, "len": 0.7, "tickformat": ".2f"},
                },
                "hovertemplate": "%{text}<br>disagreement %{marker.color:.3f}<extra></extra>",
            }
            title = f"{provider_label(student)}, {provider_label(teacher)}"
            figures.append(Figure(title, [trace], {"xaxis": dict(hidden), "yaxis": dict(hidden)}))
    return figures


def layout(places: np.ndarray) -> np.ndarray:
    """``[n, 2]``: the texts at ``places [n, C]`` on a plane, neighbours near each other. Equal places give equal planes
    on one machine.

    Places that are all the same, or too far apart for float32, end scikit-learn's t-SNE with a segmentation fault.
    """
    with np.errstate(all="ignore"):
        away = places - places[:1]
    span = np.abs(away).max(initial=0)
    if len(places) < _FEWEST or places.shape[1] < 2 or not 0 < span < np.inf:
        flat = np.zeros((len(places), 2))
        flat[:, : places.shape[1]] = places[:, :2]
        return flat
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, len(places) / 5)
    with threadpool_limits(
        1
    ):  # its threads wait for each other: on a busy machine a hundred seconds, and three with one
        return TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=0).fit_transform(away / span)


def _lines(text: str, width: int = 60, most: int = 4) -> str:
    """``text`` for a hover label: short lines, no markup."""
    words, lines = text.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()[: 2 * width]
    shown = [plain(line) for line in lines[:most]]
    return "<br>".join(shown) + ("…" if len(lines) > most else "")
