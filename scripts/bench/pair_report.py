"""The page and the picture of the quickstart's student beside the one that learned from labelled pairs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows, from_json
from jasper_jax.evaluation.figures import new_figure, save_figure
from jasper_jax.evaluation.plots import COLOURS

Rows = dict[int, list[EvaluationRow]]
"""Dimension -> the rows of it, one for each run."""


def write_pairs(path: Path, quickstart: Path, folders: Sequence[Path], test: str, command: str) -> None:
    """``folders``: runs of ``configs/quickstart_pairs.yaml`` with seeds of their own, from the quickstart's student,
    whose evaluation is the file ``quickstart`` and has the rows of what needs no training."""
    first = from_json(quickstart)
    students = [by_dim([from_json(folder / "evaluation.json")]) for folder in folders]
    taught = {dim: [student[dim][0] for student in students] for dim in students[0]}
    references = [row for row in first.rows if row.role in ("teacher", "teachers")]
    short = [row for row in first.rows if row.role == "baseline" and row.provider.endswith("SVD")]
    score = references[0].retrieval[test]
    seeds = f"{len(folders)} seeds" if len(folders) > 1 else "one seed"
    lines = [
        "# Relevance beside vectors: the quickstart's student, and what labelled pairs add",
        "",
        f"`{command}`; `configs/quickstart.yaml`, then `configs/quickstart_pairs.yaml` from its student with {seeds}"
        f" (mean, least to greatest). {test.capitalize()}: {score.passages:,} passages, {score.queries:,} questions, ±"
        " half the 95% bootstrap interval over the questions. Million weights: what a token meets.",
        "",
        "| | dimensions | million weights | nDCG@10 | Lee Spearman |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [_line(row.provider, [row], test) for row in [*references, *short]]
    lines += [_line("**quickstart's student**", rows, test) for rows in by_dim([first]).values()]
    lines += [_line("**and labelled pairs**", rows, test) for rows in taught.values()]
    joined = next(row for row in references if row.role == "teachers")
    above = {
        dim: sum(_ndcg(row, test) > _ndcg(joined, test) for row in rows) for dim, rows in taught.items() if dim >= 256
    }
    lines += [
        "",
        f"Above both teachers joined ({_ndcg(joined, test):.4f}): "
        + ", ".join(f"{count} of {len(folders)} at {dim} dimensions" for dim, count in above.items())
        + ".",
        "",
        f"![nDCG@10 by dimension]({path.stem}.png)",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(path.with_suffix(".png"), by_dim([first]), taught, references, short, test)


def by_dim(evaluations: Sequence[Evaluation]) -> Rows:
    """The final student's rows by dimension."""
    found: Rows = {}
    for evaluation in evaluations:
        for row in final_rows(evaluation):
            found.setdefault(row.dim, []).append(row)
    return found


def _ndcg(row: EvaluationRow, test: str) -> float:
    return row.retrieval[test].ndcg10.value


def _line(name: str, rows: Sequence[EvaluationRow], test: str) -> str:
    scores, lee = [_ndcg(row, test) for row in rows], [row.similarity["lee"].spearman or 0.0 for row in rows]
    half = f"{scores[0]:.4f} ± {rows[0].retrieval[test].ndcg10.half:.4f}"
    shown = [half if len(rows) == 1 else _range(scores), f"{lee[0]:.4f}" if len(rows) == 1 else _range(lee)]
    return f"| {name} | {rows[0].dim} | {(rows[0].weights or 0) / 1e6:.1f} | {' | '.join(shown)} |"


def _range(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def draw(
    path: Path,
    quickstart: Rows,
    taught: Rows,
    references: Sequence[EvaluationRow],
    short: Sequence[EvaluationRow],
    test: str,
) -> None:
    """nDCG@10 by dimension: both students, the teachers, and the teachers through an SVD."""
    figure = new_figure(8.2, 4.2, "constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EBEBEB")
    faint = "#777777"
    for row in references:
        axes.axhline(_ndcg(row, test), color=faint, linewidth=1, linestyle=(0, (6, 3)), zorder=1)
        axes.annotate(
            f"{row.provider} ({row.dim})  {_ndcg(row, test):.3f}",
            (1.01, _ndcg(row, test)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color=faint,
        )
    lines: dict[str, tuple[dict[int, float], str, str]] = {}
    for provider in dict.fromkeys(row.provider for row in short):
        values = {row.dim: _ndcg(row, test) for row in short if row.provider == provider}
        lines[provider] = (values, COLOURS[2 + len(lines)], ":")
    for name, rows, colour in (
        ("labelled pairs", taught, COLOURS[1]),
        ("quickstart's student", quickstart, COLOURS[0]),
    ):
        means = {dim: statistics.mean(_ndcg(row, test) for row in of) for dim, of in rows.items()}
        lines[name] = (means, colour, "-")
    for name, (values, colour, style) in lines.items():
        dims = sorted(values)
        axes.plot(dims, [values[dim] for dim in dims], style, marker="o", markersize=4, color=colour, label=name)
    dims = sorted(taught)
    for dim in dims:
        value = lines["labelled pairs"][0][dim]
        axes.annotate(
            f"{value:.3f}",
            (dim, value),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=COLOURS[1],
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_xlabel("dimensions of a vector", fontsize=9)
    axes.set_title(f"nDCG@10 on {test}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    save_figure(figure, path)
