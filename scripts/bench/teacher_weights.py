"""What the weights of two teachers do to a student's heads: solved in closed form, and trained.

    jasper run configs/quickstart.yaml
    jasper run configs/quickstart.yaml teachers.0.weight=0.25 run_dir=runs/quarter
    python scripts/bench/teacher_weights.py runs/quickstart runs/quarter

For each weight of the first teacher beside 1 of the second, heads are solved by ridge regression from the first
run's student's pooled vectors to the joined teachers, as ``init: ridge`` does, and scored on the whole of Amazon and on
Lee; then the trained heads of each run. Writes ``docs/results/teacher-weights.md``. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jasper_jax.data.draw_order import sample_records
from jasper_jax.data.texts import TextStore
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.recipe.config_evaluation import Evaluation
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.student.heads import project_rows, ridge_head
from jasper_jax.teachers.vectors import concatenate, normalize_rows

TEST = {"retrieval": [{"name": "amazon", "asset": "squad-shifts", "split": "amazon"}], "similarity": ["lee"]}
WEIGHTS = (0.0, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="runs of two teachers, trained and exported")
    parser.add_argument("--texts", type=int, default=4000, help="training texts of the regression")
    parser.add_argument("--output", type=Path, default=Path("docs/results/teacher-weights.md"))
    options = parser.parse_args()
    runs = [Run(load_recipe(folder / "recipe.yaml", [f"run_dir={folder}"])) for folder in options.runs]
    texts = TextStore.open(runs[0].data.text_folder)
    tests = TextTests(Evaluation.model_validate(TEST), texts)
    students = [Embedder.load(folder / "export") for folder in options.runs]
    dims = sorted(students[0].dims, reverse=True)

    indices = sample_records(texts.size("train"), options.texts, 0)
    rows = texts.read("train", indices)
    pooled = students[0].pooled([r.text for r in rows], [r.kind for r in rows], show_progress=True)
    of_tests = [
        {name: student.pooled(t.texts, t.kinds, show_progress=True) for name, t in tests.lists.items()}
        for student in students
    ]
    view = runs[0].vectors.view(texts)
    assert view is not None
    parts = [store.read("train", indices) for store in view.stores]

    def line(label: str, made: Callable[[int, str], np.ndarray], most: int) -> str:
        cells = []
        for dim in dims:
            if dim > most:
                cells.append("–")
                continue
            scores = tests.score({name: made(dim, name) for name in tests.lists}, None)
            lee = scores["similarity"]["lee"].spearman
            cells.append(f"{scores['retrieval']['amazon'].ndcg10.value:.3f} / {lee:.3f}")
        return f"| {label} | {' | '.join(cells)} |"

    def solved(label: str, target: np.ndarray) -> str:
        heads = {dim: ridge_head(pooled, target, dim) for dim in dims if dim <= target.shape[1]}
        return line(label, lambda dim, name: project_rows(heads[dim], of_tests[0][name]), target.shape[1])

    first, second = (teacher.name for teacher in runs[0].teachers)
    lines = [
        solved(f"{first} {weight:g}, {second} 1", concatenate(parts, [weight, 1.0]) if weight else parts[1])
        for weight in WEIGHTS
    ]
    lines.append(solved("the student's own pooled vector", normalize_rows(pooled)))
    for run, student, mine in zip(runs, students, of_tests):
        weights = ", ".join(f"{teacher.name} {teacher.settings.weight:g}" for teacher in run.teachers)
        lines.append(
            line(f"**trained** with {weights}", lambda dim, name, s=student, x=mine: s.project(x[name], dim), max(dims))
        )
    command = f"python scripts/bench/teacher_weights.py {' '.join(map(str, options.runs))}"
    options.output.write_text(
        f"""# Weights of two teachers

`{command}`

Heads solved in closed form from the pooled vectors of the first run's exported student ({len(indices):,} training
texts), for each weight of {first} beside 1 of {second}; then the heads as each run trained them. nDCG@10 on the whole
of Amazon ({len(tests.retrieval["amazon"].queries):,} questions) / Spearman on Lee.

| heads | {" | ".join(map(str, dims))} |
| --- |{" ---: |" * len(dims)}
{chr(10).join(lines)}
"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
