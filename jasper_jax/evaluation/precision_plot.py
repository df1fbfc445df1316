"""A plot of nDCG@10 against the bytes of a vector, a line for each precision."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jasper_jax.evaluation.figures import default_style, new_figure, save_figure
from jasper_jax.evaluation.plots import COLOURS
from jasper_jax.evaluation.precisions import PrecisionRow


@default_style()
def plot_precisions(rows: Sequence[PrecisionRow], out_png: str | os.PathLike) -> None:
    """Draw the first retrieval test of ``rows``; each point is labelled with its dimension."""
    test = next(iter(rows[0].retrieval))
    figure = new_figure(7.6, 4.4, "constrained")
    axes = figure.subplots()
    for precision, colour in zip(dict.fromkeys(row.precision for row in rows), COLOURS):
        line = sorted((row for row in rows if row.precision == precision), key=lambda row: row.bytes)
        sizes, values = [row.bytes for row in line], [row.retrieval[test].ndcg10.value for row in line]
        axes.plot(sizes, values, "o-", color=colour, linewidth=1.7, markersize=4.5, label=precision)
        for row, size, value in zip(line, sizes, values):
            axes.annotate(str(row.dim), (size, value), xytext=(3, 5), textcoords="offset points", fontsize=7)
    sizes = sorted({row.bytes for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.set_title(f"nDCG@10 on {test} by size and dimension", loc="left", fontsize=10)
    axes.set_xlabel("bytes of a vector in the index", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EBEBEB", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, out_png)
