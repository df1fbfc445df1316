"""Scores of model folders without a recipe: somebody's own labels, several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jasper_jax.assets.models import resolve_model
from jasper_jax.checkpoints.export_marker import refuse_damaged
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.evaluation.instructions import InstructionRow, Output, instruction_rows
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.evaluation.text_tests import TextTests, check_classification, check_judged, check_test
from jasper_jax.evaluation.wordings import read_wordings
from jasper_jax.recipe import config_evaluation
from jasper_jax.recipe.config_evaluation import file_kind
from jasper_jax.recipe.load import parse_section
from jasper_jax.recipe.yaml_text import parse_yaml
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say


def asked_of(
    pairs: Sequence[str],
    beir: Sequence[str],
    similarity: Sequence[str],
    classification: Sequence[str] = (),
    instructions: str | None = None,
) -> config_evaluation.Evaluation:
    """The tests that files ask for, as a recipe's section ``evaluation`` would.

    Args:
      pairs: files of queries, each with a passage that answers it, or a recipe's source of pairs in braces, such as
        ``{csv: faq.csv, query: question, passage: answer}``.
      beir: folders in BEIR's format.
      similarity: files of pairs of texts with a judgement in the column ``score``, or such a source.
      classification: files of texts with labels, or such a source of columns ``text`` and ``label`` under ``file``.
      instructions: a file of wordings, or "default" for the set of :mod:`jasper_jax.evaluation.wordings`.

    Raises:
      UserError: no test at all, a file that does not exist, or one without the columns.
    """
    taken: set[str] = set()

    def named(option: str, given: str, **source: Any) -> dict[str, Any]:
        stem = "pairs" if given.startswith("{") else Path(given).name.partition(".")[0] or option
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 1000))) if n not in taken)
        taken.add(name)
        return {"name": name, **source}

    tree = {
        "agreement": False,
        "retrieval": [
            *(named("pairs", given, pairs=_source("--pairs", given)) for given in pairs),
            *(named("beir", given, beir=given) for given in beir),
        ],
        "similarity": [
            named("similarity", given, pairs={"score": "score", **_source("--similarity", given)})
            for given in similarity
        ],
        "classification": [
            named("classification", given, **(_mapping("--classification", given) or {"file": given}))
            for given in classification
        ],
        "instructions": instructions == "default" or instructions or False,
    }
    asked = parse_section(config_evaluation.Evaluation, "evaluation", tree, "the options")
    if not asked.retrieval and not asked.similarity and not asked.classification:
        raise UserError(
            "nothing to score a model by; give --pairs FILE, --beir FOLDER, --similarity FILE or --classification FILE"
        )
    if asked.instructions and not asked.retrieval:
        raise UserError("--instructions: are for retrieval; give --pairs FILE or --beir FOLDER too")
    for test in asked.retrieval:
        check_test(test)
    for judged in asked.similarity:
        assert not isinstance(judged, str)
        check_judged(judged)
    for labels in asked.classification:
        check_classification(labels)
    read_wordings(asked.instructions, "--instructions")
    return asked


def _source(option: str, given: str) -> dict[str, Any]:
    """A source of pairs: a mapping in braces, or a file by the kind of its content."""
    if source := _mapping(option, given):
        return source
    try:
        return {file_kind(given): given}
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None


def _mapping(option: str, given: str) -> dict[str, Any] | None:
    """A mapping in braces; None for a file's name."""
    if not given.startswith("{"):
        return None
    try:
        source = parse_yaml(given)
    except (yaml.YAMLError, ValueError, RecursionError):
        source = None
    if not isinstance(source, dict):
        raise UserError(f"{option}: {given!r} is not a mapping; e.g. '{{csv: faq.csv, query: question}}'")
    return source


def refuse_dims(model: str, dims: Sequence[int], own: Sequence[int], default: int) -> None:
    """UserError for one of ``dims`` that ``model`` neither has, among its ``own``, nor can cut from its ``default``."""
    if wrong := [dim for dim in dims if dim not in own and not 1 <= dim <= default]:
        cut = "" if default == max(own) else f", and cuts others from {default}"
        raise UserError(f"--dim {wrong[0]}: {model} has {', '.join(map(str, own))} dimensions{cut}")


def evaluate_folders(models: Sequence[str], asked: config_evaluation.Evaluation, dims: Sequence[int]) -> Evaluation:
    """A row for each model and dimension.

    Args:
      models: folders of sentence-transformers, names of assets or hub ids.
      dims: dimensions; none: each model's own. One that a model has no head for is cut from its own vectors, and called
        so in the table.

    Raises:
      UserError: a model that cannot be read, or with fewer dimensions than asked.
    """
    tests = TextTests(asked, None)
    rows: list[EvaluationRow] = []
    instructions: list[InstructionRow] = []
    for model in models:
        folder = resolve_model(model)
        refuse_damaged(folder)
        embedder = Embedder.load(folder)
        refuse_dims(model, dims, embedder.dims, embedder.default_dim)
        say(f"{model}: {', '.join(map(str, dims or [embedder.default_dim]))} dimensions")
        pooled = {name: embedder.pooled(*texts, show_progress=True) for name, texts in tests.lists.items()}
        pooled |= tests.encode_reworded(embedder, lambda model, listed: model.pooled(*listed, show_progress=True))
        outputs: list[Output] = []
        for dim in dims or [embedder.default_dim]:
            own = dim in embedder.dims
            provider = model if own else f"{model}, cut"
            of = partial(_vectors, embedder, dim if own else embedder.default_dim, dim)
            rows.append(
                EvaluationRow(
                    provider=provider,
                    role="model",
                    dim=dim,
                    weights=embedder.encoder.weights_per_token,
                    **tests.score({name: of(pooled[name]) for name in tests.lists}, None),
                )
            )
            outputs.append(Output({"provider": provider, "role": "model", "dim": dim}, of))
        if tests.reworded:
            instructions += instruction_rows(tests, pooled, outputs)
    metadata: dict[str, Any] = {"tests": asked.model_dump(mode="json"), "environment": environment()}
    return Evaluation(rows=rows, instructions=instructions, metadata=metadata)


def _vectors(embedder: Embedder, own: int, dim: int, pooled: np.ndarray) -> np.ndarray:
    """The first ``dim`` components of the vectors of ``own`` dimensions, normalised again."""
    return truncate(embedder.project(pooled, own), dim)
