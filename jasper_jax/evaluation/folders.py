"""Scores of model folders without a recipe: somebody's own labels, several models side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jasper_jax.assets.models import resolve_model
from jasper_jax.checkpoints.export_marker import refuse_damaged
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.report import Evaluation, EvaluationRow
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.evaluation.text_tests import TextTests, check_judged, check_test
from jasper_jax.recipe import config_evaluation
from jasper_jax.recipe.load import parse_section
from jasper_jax.recipe.yaml_text import parse_yaml
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.text_files import content_suffix

_KINDS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def asked_of(pairs: Sequence[str], beir: Sequence[str], similarity: Sequence[str]) -> config_evaluation.Evaluation:
    """The tests that files ask for, as a recipe's section ``evaluation`` would.

    Args:
      pairs: files of queries, each with a passage that answers it, or a recipe's source of pairs in braces, such as
        ``{csv: faq.csv, query: question, passage: answer}``.
      beir: folders in BEIR's format.
      similarity: files of pairs of texts with a judgement in the column ``score``, or such a source.

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
    }
    asked = parse_section(config_evaluation.Evaluation, "evaluation", tree, "--pairs, --beir, --similarity")
    if not asked.retrieval and not asked.similarity:
        raise UserError("nothing to score a model by; give --pairs FILE, --beir FOLDER or --similarity FILE")
    for test in asked.retrieval:
        check_test(test)
    for judged in asked.similarity:
        assert not isinstance(judged, str)
        check_judged(judged)
    return asked


def _source(option: str, given: str) -> dict[str, Any]:
    """A source of pairs: a mapping in braces, or a file by the kind of its content."""
    if given.startswith("{"):
        try:
            source = parse_yaml(given)
        except (yaml.YAMLError, ValueError, RecursionError):
            source = None
        if not isinstance(source, dict):
            raise UserError(f"{option}: {given!r} is not a mapping; e.g. '{{csv: faq.csv, query: question}}'")
        return source
    kind = _KINDS.get(content_suffix(Path(given)))
    if kind is None:
        raise UserError(f"{option}: {given}: expected a name that ends in {', '.join(_KINDS)}, compressed or not")
    return {kind: given}


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
    for model in models:
        folder = resolve_model(model)
        refuse_damaged(folder)
        embedder = Embedder.load(folder)
        refuse_dims(model, dims, embedder.dims, embedder.default_dim)
        say(f"{model}: {', '.join(map(str, dims or [embedder.default_dim]))} dimensions")
        pooled = {name: embedder.pooled(*texts, show_progress=True) for name, texts in tests.lists.items()}
        for dim in dims or [embedder.default_dim]:
            own = dim in embedder.dims
            vectors = {name: embedder.project(x, dim if own else embedder.default_dim) for name, x in pooled.items()}
            rows.append(
                EvaluationRow(
                    provider=model if own else f"{model}, cut",
                    role="model",
                    dim=dim,
                    weights=embedder.encoder.weights_per_token,
                    **tests.score({name: truncate(x, dim) for name, x in vectors.items()}, None),
                )
            )
    metadata: dict[str, Any] = {"tests": asked.model_dump(mode="json"), "environment": environment()}
    return Evaluation(rows=rows, metadata=metadata)
