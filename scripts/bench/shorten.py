"""Shortened vectors against plain truncation and PCA, on the run of configs/shorten.yaml.

    jasper run configs/shorten.yaml
    python scripts/bench/shorten.py runs/shorten

PCA is fitted on the vectors of the run's own training texts (as many as ``--texts``), centred, and scored on the same
test as the run; truncation takes the model's first components. Writes a table and a picture to ``docs/results/``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from quality_report import write_methods

from jasper_jax.data.texts import TextStore
from jasper_jax.evaluation.evaluation import EvaluationRow, final_rows, from_json
from jasper_jax.evaluation.similarity import truncate, unit
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.program_cache import cache_programs
from jasper_jax.student.start import load_student, student_embedder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of configs/shorten.yaml, trained and evaluated")
    parser.add_argument("--texts", type=int, default=6000, help="training texts that PCA is fitted on, at most")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    cache_programs()
    run = Run(load_recipe(options.run / "recipe.yaml", [f"run_dir={options.run}"]))
    texts = TextStore.open(run.data.text_folder)
    tests = TextTests(run.recipe.evaluation, texts)
    student, params, tokenizer = load_student(run.recipe, None, run.student)
    model = student_embedder(student, params, tokenizer)

    evaluation = from_json(options.run / "evaluation.json")
    learnt = final_rows(evaluation)
    rows = texts.read("train", range(min(options.texts, texts.size("train"))))
    fitted = unit(model.pooled([r.text for r in rows], [r.kind for r in rows], show_progress=True))
    vectors = {name: unit(model.pooled(t.texts, t.kinds, show_progress=True)) for name, t in tests.lists.items()}
    mean = fitted.mean(axis=0)
    axes = np.linalg.svd(fitted - mean, full_matrices=False)[2]  # [rank, D], the widest first

    reference = vectors.get("held_out")
    methods: dict[str, list[EvaluationRow]] = {"distilled (this recipe)": learnt}
    for name, shorten in {
        "PCA": lambda x, dim: (x - mean) @ axes[:dim].T,
        "truncation": truncate,
    }.items():
        methods[name] = [
            EvaluationRow(
                provider=name,
                role="student",
                dim=row.dim,
                stage=1,
                **tests.score({key: shorten(x, row.dim) for key, x in vectors.items()}, reference),
            )
            for row in learnt
        ]
    whole = next(row for row in evaluation.rows if row.role == "teacher")
    command = f"jasper run configs/shorten.yaml; python scripts/bench/shorten.py runs/shorten --texts {options.texts}"
    write_methods(options.output / "shorten", methods, whole, f"`{command}` (PCA fitted on {len(rows):,} texts)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
