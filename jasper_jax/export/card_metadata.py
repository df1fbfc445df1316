"""The metadata of a model card, as the hub's own library writes and reads it: licence, base model, data sets, scores.

Scores are the ``model-index`` of the trained student, one entry for each test and dimension, with the names that
sentence-transformers gives its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from huggingface_hub import EvalResult, ModelCardData

from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows
from jasper_jax.export.model import TrainedStudent
from jasper_jax.export.public import is_hub_id
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.shown import shown

_RETRIEVAL = {"ndcg10": "cosine_ndcg@10", "mrr10": "cosine_mrr@10", "recall1": "cosine_recall@1"} | {
    "recall10": "cosine_recall@10"
}
"""Field of a ``RetrievalScore`` -> metric, as sentence-transformers names it."""


def card_metadata(
    recipe: Recipe, trained: TrainedStudent, evaluation: Evaluation | None, texts: Sequence[str] = ()
) -> ModelCardData:
    """The metadata; nothing in it is a path or a text that nobody chose to publish.

    ``texts``: held-out texts for the widget, which compares the first with the others.
    """
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "distillation"]
    scores = list(_scores(evaluation, trained)) if evaluation else []
    lines = [" ".join(shown(text).split()) for text in texts]
    return ModelCardData(
        language=list(recipe.export.language) or None,
        license=recipe.export.license or inherited_licence(recipe),
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*tags, *(["matryoshka"] if nested_dims(trained) else []), "jasper_jax"],
        base_model=base_model(recipe),
        datasets=_hub_data_sets(recipe) or None,
        model_name=recipe.name if scores else None,
        eval_results=scores or None,
        # sentence-similarity's form of an example
        widget=[{"source_sentence": lines[0], "sentences": lines[1:]}] if len(lines) > 1 else None,
    )


def base_model(recipe: Recipe) -> str | None:
    """The hub id of the checkpoint that the student started from; None: a folder, or random weights."""
    model = recipe.student.model
    if model in CATALOGUE:
        return CATALOGUE[model].hub
    return model if model and is_hub_id(model) else None


def nested_dims(trained: TrainedStudent) -> list[int]:
    """The dimensions to which the default vector may be cut."""
    head = trained.served[trained.default].head
    return [dim for dim in trained.student.heads[head].dims if dim < trained.default]


def served_rows(evaluation: Evaluation, trained: TrainedStudent) -> list[EvaluationRow]:
    """The trained student's row of each exported dimension."""
    heads = {dim: provider.head for dim, provider in trained.served.items()}
    return [row for row in final_rows(evaluation) if heads.get(row.dim) == row.head]


def inherited_licence(recipe: Recipe) -> str | None:
    """That of the asset whose weights the student continues; of any other checkpoint nothing is known here."""
    model = recipe.student.model
    return CATALOGUE[model].licence.lower() if model in CATALOGUE else None


def _hub_data_sets(recipe: Recipe) -> list[str]:
    if recipe.texts is None:
        return []
    sources = [*recipe.texts.sources, *recipe.texts.pairs]
    return list(dict.fromkeys(source.hf for source in sources if source.hf and is_hub_id(source.hf)))


def _scores(evaluation: Evaluation, trained: TrainedStudent) -> Iterator[EvalResult]:
    for row in served_rows(evaluation, trained):
        for test, score in row.retrieval.items():
            for name, metric in _RETRIEVAL.items():
                value = getattr(score, name).value
                yield _result("information-retrieval", "Information Retrieval", test, row.dim, metric, value)
        for test, score in row.similarity.items():
            if score.spearman is not None:
                yield _result(
                    "semantic-similarity", "Semantic Similarity", test, row.dim, "spearman_cosine", score.spearman
                )


def _result(task: str, task_name: str, test: str, dim: int, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=task,
        task_name=task_name,
        dataset_type=test,
        dataset_name=f"{test}, {dim} dimensions",
        dataset_config=f"{dim} dimensions",  # one entry for each: entries are told apart by type and config
        metric_type=metric,
        metric_name=metric.replace("_", " ").title(),
        metric_value=value,
    )
