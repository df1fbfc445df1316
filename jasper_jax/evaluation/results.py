"""Results by data set: which evaluation a file holds, and whether it is still that of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.source_files import as_it_is, matching, pattern_of
from jasper_jax.evaluation.evaluation import Evaluation, from_json
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_evaluation import Classification, Retrieval, Similarity
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import json_bytes
from jasper_jax.runtime.paths import user_path

_NOT_SCORES = {"run_dir", "stores", "mirror", "mesh", "export"}
"""Sections on which no score depends."""


def origin(run: RunFolder) -> dict[str, Any]:
    """What an evaluation of ``run`` depends on, for its metadata: ``tests`` (the recipe's section), ``recipe`` (its
    sha256), ``stages`` (how many are finished), and ``files`` of tests with their sizes and times."""
    checkpoints = run.checkpoints()
    recipe = run.recipe.model_dump(mode="json", exclude=_NOT_SCORES)
    return {
        "tests": recipe["evaluation"],
        "recipe_sha256": hashlib.sha256(json_bytes(recipe)).hexdigest(),
        "stages": sum(checkpoints.has(checkpoints.final(number)) for number in range(len(run.stages))),
        "files": _files(run.recipe),
    }


def _files(recipe: Recipe) -> list[Any]:
    judged = [test for test in recipe.evaluation.similarity if not isinstance(test, str)]
    tests = (*recipe.evaluation.retrieval, *judged, *recipe.evaluation.classification)
    paths = {path for test in tests for path in _paths(test)}
    if isinstance(recipe.evaluation.instructions, str):
        paths.add(user_path(recipe.evaluation.instructions, "evaluation.instructions"))
    # The mirror shows them to others: names, not where they are.
    return [{**as_it_is(path).model_dump(exclude={"sha256"}), "file": path.name} for path in sorted(paths)]


def _paths(test: Retrieval | Similarity | Classification) -> list[Path]:
    if isinstance(test, Classification):
        return matching(test.file)
    if isinstance(test, Retrieval) and test.beir is not None:
        folder = user_path(test.beir)
        return [path for path in (*folder.glob("*.jsonl*"), *folder.glob("qrels/*")) if path.is_file()]
    pattern = None if test.pairs is None else pattern_of(test.pairs)
    return [] if pattern is None else matching(pattern)


def results_path(folder: Path, evaluation: Evaluation) -> Path:
    """The file for an evaluation in the run's ``folder``: ``evaluations/<tests>.json``, with a number where another
    data set has that name. The same tests of the same data have the same file."""
    tests: Any = evaluation.metadata.get("tests") or {}
    names = [
        *(test["name"] for test in tests.get("retrieval", ())),
        *(test["name"] if isinstance(test, dict) else test for test in tests.get("similarity", ())),
        *(test["name"] for test in tests.get("classification", ())),
    ]
    name = "+".join(names)[:100] or "held-out"
    number = 1
    while True:
        path = folder / "evaluations" / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        before = _read(path)
        if before is None or before.metadata.get("tests") == tests:
            return path
        number += 1


def is_evaluated(run: RunFolder) -> bool:
    """Whether ``evaluation.json`` is what evaluating ``run`` now would write."""
    before = _read(run.path / "evaluation.json")
    return before is not None and all(before.metadata.get(key) == value for key, value in origin(run).items())


def _read(path: Path) -> Evaluation | None:
    try:
        return from_json(path) if path.is_file() else None
    except UserError:  # damaged: it is written again
        return None
