"""What the weights of two teachers do to a student's heads, in closed form: no training, one encoder.

    jasper run configs/quickstart.yaml
    python scripts/bench/teacher_weights.py runs/quickstart

For each weight of the recipe's first teacher beside 1 of the second, heads are solved by ridge regression from the
exported student's pooled vectors to the joined teachers, as ``init: ridge`` does, and scored on the whole of Amazon and
on Lee. Writes ``docs/results/teacher-weights.md``. Needs the run's stores; two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
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
    parser.add_argument("run", type=Path, help="a run of two teachers, trained and exported")
    parser.add_argument("--texts", type=int, default=4000, help="training texts of the regression")
    parser.add_argument("--output", type=Path, default=Path("docs/results/teacher-weights.md"))
    options = parser.parse_args()
    run = Run(load_recipe(options.run / "recipe.yaml", [f"run_dir={options.run}"]))
    texts = TextStore.open(run.data.text_folder)
    tests = TextTests(Evaluation.model_validate(TEST), texts)
    student = Embedder.load(options.run / "export")
    dims = [dim for dim in sorted(student.dims, reverse=True) if dim < max(student.dims)]

    indices = sample_records(texts.size("train"), options.texts, 0)
    rows = texts.read("train", indices)
    pooled = student.pooled([r.text for r in rows], [r.kind for r in rows], show_progress=True)
    of_tests = {name: student.pooled(t.texts, t.kinds, show_progress=True) for name, t in tests.lists.items()}
    view = run.vectors.view(texts)
    assert view is not None
    parts = [store.read("train", indices) for store in view.stores]

    def row(label: str, of_dim: dict[int, dict[str, np.ndarray]]) -> str:
        cells = []
        for dim in dims:
            scores = tests.score(of_dim[dim], None) if dim in of_dim else None
            if scores is None:
                cells.append("–")
                continue
            lee = scores["similarity"]["lee"].spearman
            cells.append(f"{scores['retrieval']['amazon'].ndcg10.value:.3f} / {lee:.3f}")
        return f"| {label} | {' | '.join(cells)} |"

    def solved(target: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
        found = {}
        for dim in dims:
            if dim <= target.shape[1]:
                head = ridge_head(pooled, target, dim)
                found[dim] = {name: project_rows(head, x) for name, x in of_tests.items()}
        return found

    names = [teacher.name for teacher in run.teachers]
    trained = {dim: {name: student.project(x, dim) for name, x in of_tests.items()} for dim in dims}
    now = [teacher.settings.weight for teacher in run.teachers]
    lines = [
        row(f"{names[0]} {weight:g}, {names[1]} 1", solved(concatenate(parts, [weight, 1.0]) if weight else parts[1]))
        for weight in WEIGHTS
    ]
    lines.append(row("the student's own pooled vector", solved(normalize_rows(pooled))))
    lines.append(row(f"**the trained heads** ({names[0]} {now[0]:g}, {names[1]} {now[1]:g})", trained))
    options.output.write_text(
        f"""# Weights of two teachers

`python scripts/bench/teacher_weights.py {options.run}`: heads solved in closed form from the pooled vectors of the
exported student ({len(indices):,} training texts), for each weight of {names[0]} beside 1 of {names[1]}. nDCG@10 on
the whole of Amazon ({len(tests.retrieval["amazon"].queries):,} questions) / Spearman on Lee.

| target of the heads | {" | ".join(map(str, dims))} |
| --- |{" ---: |" * len(dims)}
{chr(10).join(lines)}
"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
