"""Tables and pictures of the quality protocol, from the ``evaluation.json`` and ``metrics.jsonl`` of its runs."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jasper_jax.evaluation.curves import read_metrics
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows, from_json, retained
from jasper_jax.evaluation.tables import markdown_table

TERMS = ("cosine", "similarity", "relative")
Folders = dict[str, Path]
"""Label of a variant -> its run folder."""


def _read(folder: Path) -> Evaluation:
    return from_json(folder / "evaluation.json")


def _test(evaluation: Evaluation) -> str:
    return next(name for row in evaluation.rows for name in row.retrieval)


def _ndcg(row: EvaluationRow, test: str) -> float:
    return row.retrieval[test].ndcg10.value


def _lee(row: EvaluationRow) -> float:
    return row.similarity["lee"].spearman or 0.0


def _references(evaluation: Evaluation) -> list[EvaluationRow]:
    return [row for row in evaluation.rows if row.role in ("teacher", "teachers")]


# ------------------------------------------------------------------------------------------ one recipe


def write_run(path: Path, folder: Path, command: str) -> None:
    """A whole run: its scores, what the student keeps, where the time went, and its two pictures."""
    evaluation = _read(folder)
    test = _test(evaluation)
    score = _references(evaluation)[0].retrieval[test]
    kept = retained(evaluation)
    better = max((r for r in _references(evaluation) if r.role == "teacher"), key=lambda row: _ndcg(row, test))
    short = next(one for one in kept if one.dim == 256)
    lines = [
        f"# {yaml.safe_load((folder / 'recipe.yaml').read_text())['name']}",
        "",
        f"`{command}`. {test.capitalize()}: {score.passages:,} passages, {score.queries:,} questions, ± half the 95%"
        " bootstrap interval over the questions.",
        "",
        markdown_table(evaluation).rstrip(),
        "",
        f"Of the better teacher's nDCG@10 ({better.provider}, {_ndcg(better, test):.4f}) the student keeps "
        + ", ".join(f"{one.of_teacher:.1f}% at {one.dim}" for one in kept)
        + f". Lee Spearman {_lee(final_rows(evaluation)[0]):.4f} against the better teacher's {_lee(better):.4f}."
        f" 256 dimensions lose {1 - short.ndcg10 / kept[0].ndcg10:.1%} of the longest's nDCG@10.",
        "",
        f"![nDCG@10 by dimension]({path.stem}-dimensions.png)",
        "",
        f"![losses]({path.stem}-training.png)",
        "",
        "## Where the time went",
        "",
        "| phase | seconds |",
        "| --- | ---: |",
    ]
    seconds = json.loads((folder / "timings.json").read_text())
    lines += [f"| {name} | {value:,.0f} |" for name, value in seconds.items()]
    lines += [f"| **together** | {sum(seconds.values()):,.0f} ({sum(seconds.values()) / 60:.1f} minutes) |"]
    path.write_text("\n".join(lines) + "\n")
    for name in ("dimensions", "training"):
        shutil.copyfile(folder / f"{name}.png", path.with_name(f"{path.stem}-{name}.png"))


# ----------------------------------------------------------------------------------------------- seeds


def write_seeds(path: Path, folders: list[Path], command: str) -> None:
    """The six-layer claims: mean of nDCG@10 and Lee against both teachers and their concatenation, over the seeds."""
    evaluations = [_read(folder) for folder in folders]
    test = _test(evaluations[0])
    references = _references(evaluations[0])
    by_dim = {row.dim: [_at(e, row.dim) for e in evaluations] for row in final_rows(evaluations[0])}
    joined = max((row for row in references if row.role == "teachers"), key=lambda row: row.dim)
    queries = references[0].retrieval[test]
    lines = [
        "# Six layers, two teachers: is the student above both?",
        "",
        f"`{command}`; {len(folders)} seeds of `configs/quickstart_6layer.yaml` on the same texts. {test.capitalize()}:"
        f" all {queries.passages:,} passages, {queries.queries:,} questions. Mean (least to greatest) over the seeds.",
        "",
        "| | dim | nDCG@10 | Lee Spearman | mean of both | of the teachers concatenated |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    whole = _mean_of_both(joined, test)
    for row in references:
        both = _mean_of_both(row, test)
        interval = f"{_ndcg(row, test):.4f} ± {row.retrieval[test].ndcg10.half:.4f}"
        lines.append(f"| {row.provider} | {row.dim} | {interval} | {_lee(row):.4f} | {both:.4f} | {both / whole:.1%} |")
    for dim, rows in by_dim.items():
        both = [_mean_of_both(row, test) for row in rows]
        lines.append(
            f"| **student** | {dim} | {_spread([_ndcg(row, test) for row in rows])} | {_spread(list(map(_lee, rows)))}"
            f" | {_spread(both)} | {statistics.mean(both) / whole:.1%} |"
        )
    best = max(_mean_of_both(row, test) for row in references if row.role == "teacher")
    longest = [_mean_of_both(row, test) for row in next(iter(by_dim.values()))]
    lines += [
        "",
        f"Above both teachers in the mean of nDCG@10 and Lee: {sum(v > best for v in longest)} of {len(longest)} seeds"
        f" (the better teacher has {best:.4f}). Least of the teachers concatenated: {min(longest) / whole:.1%}.",
        "",
        "## Seed by seed, with 95% bootstrap intervals over the questions",
    ]
    for folder, evaluation in zip(folders, evaluations):
        lines += ["", f"`{folder.name}`", "", markdown_table(evaluation).rstrip()]
    path.write_text("\n".join(lines) + "\n")


def _at(evaluation: Evaluation, dim: int) -> EvaluationRow:
    return next(row for row in final_rows(evaluation) if row.dim == dim)


def _mean_of_both(row: EvaluationRow, test: str) -> float:
    return (_ndcg(row, test) + _lee(row)) / 2


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


# -------------------------------------------------------------------------------------------- variants


def write_table(folders: Folders, title: str, note: str, command: str) -> str:
    """nDCG@10 of every variant at every dimension, and Lee and agreement at the longest, as Markdown."""
    evaluations = {label: _read(folder) for label, folder in folders.items()}
    first = next(iter(evaluations.values()))
    test = _test(first)
    dims = [row.dim for row in final_rows(first)]
    score = _references(first)[0].retrieval[test]
    half = statistics.mean(row.retrieval[test].ndcg10.half for row in final_rows(first))
    lines = [
        f"# {title}",
        "",
        f"`{command}`. {note}",
        "",
        f"nDCG@10 on {test} ({score.passages:,} passages, {score.queries:,} questions; 95% interval about ± {half:.3f},"
        f" but all rows answer the same questions), by dimension; Lee Spearman and agreement with the teachers on"
        f" held-out texts (Spearman of similarities) at {dims[0]} dimensions.",
        "",
        "| | " + " | ".join(map(str, dims)) + " | Lee | agreement |",
        "| --- |" + " ---: |" * (len(dims) + 2),
    ]
    for row in _references(first):
        agreement = f"{row.agreement.spearman:.4f}" if row.agreement else ""
        blank = " | " * (len(dims) - 1)
        lines.append(f"| {row.provider} ({row.dim}) | {_ndcg(row, test):.4f}{blank} | {_lee(row):.4f} | {agreement} |")
    for label, evaluation in evaluations.items():
        rows = final_rows(evaluation)
        scores = " | ".join(f"{_ndcg(_at(evaluation, dim), test):.4f}" for dim in dims)
        agreement = f"{rows[0].agreement.spearman:.4f}" if rows[0].agreement else ""
        lines.append(f"| {label} | {scores} | {_lee(rows[0]):.4f} | {agreement} |")
    return "\n".join(lines) + "\n"


def write_curves(folders: Folders, path: Path) -> None:
    """Each term of the first head's loss, by texts seen: training batches as lines, held-out texts as dots."""
    figure, colours = _figure(11.0, 3.6)
    panels = figure.subplots(1, len(TERMS))
    for (label, folder), colour in zip(folders.items(), colours):
        batch = yaml.safe_load((folder / "recipe.yaml").read_text())["stages"][-1]["batch_size"]
        steps, evaluations = read_metrics(folder / "metrics.jsonl")
        head = next(name for name in steps[0]["terms"]).partition("/")[0]
        for axes, term in zip(panels, TERMS):
            x, y = _series(steps, f"{head}/{term}", batch)
            if len(x):
                width = max(1, len(y) // 20)
                smooth = [np.median(y[max(0, k - width) : k + width + 1]) for k in range(len(y))]
                axes.plot(x, smooth, color=colour, linewidth=1.5, label=label)
            x, y = _series(evaluations, f"{head}/{term}", batch)
            axes.plot(x, y, "o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.5)
    for axes, term in zip(panels, TERMS):
        _finish(axes, f"{term} loss of the long head", "texts seen", log=True)
    figure.legend(
        *panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _series(events: list[dict[str, Any]], term: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(e["global_step"] * batch, e["terms"][term]) for e in events if term in e["terms"]]
    return np.array([x for x, _ in pairs], float), np.array([y for _, y in pairs], float)


def write_dimensions(folders: Folders, path: Path) -> None:
    """nDCG@10 by dimension, a line a variant, the teachers as dashed lines."""
    figure, colours = _figure(6.6, 3.8)
    axes = figure.subplots()
    for (label, folder), colour in zip(folders.items(), colours):
        evaluation = _read(folder)
        test = _test(evaluation)
        rows = final_rows(evaluation)[::-1]
        axes.plot([r.dim for r in rows], [_ndcg(r, test) for r in rows], "o-", color=colour, markersize=4, label=label)
    first = _read(next(iter(folders.values())))
    for row in _references(first):
        axes.axhline(_ndcg(row, _test(first)), color="#999999", linewidth=1, linestyle=(0, (5, 3)))
        axes.annotate(row.provider, (64, _ndcg(row, _test(first))), fontsize=7, color="#777777", va="bottom")
    axes.set_xscale("log", base=2)
    dims = [row.dim for row in final_rows(first)]
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    _finish(axes, f"nDCG@10 on {_test(first)}", "dimension")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _figure(width: float, height: float) -> tuple[Any, list[str]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from jasper_jax.evaluation.plots import COLOURS

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(COLOURS)


def _finish(axes: Any, title: str, x: str, log: bool = False) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    if log:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def write_methods(path: Path, methods: dict[str, list[EvaluationRow]], whole: EvaluationRow, command: str) -> None:
    """``path``.md and ``path``.png: ways to shorten one model's vectors, beside the whole vectors."""
    test = next(iter(whole.retrieval))
    score = whole.retrieval[test]
    lines = [
        "# Shorter vectors for a model one has: distilled, PCA, truncated",
        "",
        f"{command}. {test.capitalize()}: {score.passages:,} passages, {score.queries:,} questions, ± half the 95%"
        f" bootstrap interval. Whole vectors ({whole.dim}): nDCG@10 {score.ndcg10.value:.4f} ± {score.ndcg10.half:.4f},"
        f" Lee {_lee(whole):.4f}. Agreement: Spearman with the whole vectors' similarities on held-out texts.",
        "",
        "| | dim | nDCG@10 | kept | Lee Spearman | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for place in range(len(next(iter(methods.values())))):
        for name, rows in methods.items():
            row = rows[place]
            value = row.retrieval[test].ndcg10
            agreement = f"{row.agreement.spearman:.4f}" if row.agreement else ""
            lines.append(
                f"| {name} | {row.dim} | {value.value:.4f} ± {value.half:.4f} | {value.value / score.ndcg10.value:.1%}"
                f" | {_lee(row):.4f} | {agreement} |"
            )
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    figure, colours = _figure(6.6, 3.8)
    axes = figure.subplots()
    for (name, rows), colour in zip(methods.items(), colours):
        values = [row.retrieval[test].ndcg10 for row in rows]
        error = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        dims = [row.dim for row in rows]
        axes.errorbar(
            dims, [v.value for v in values], error, fmt="o-", color=colour, capsize=3, markersize=4, label=name
        )
    axes.axhline(score.ndcg10.value, color="#999999", linewidth=1, linestyle=(0, (5, 3)), label=f"whole ({whole.dim})")
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    _finish(axes, f"nDCG@10 on {test}, with 95% intervals", "dimension")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
