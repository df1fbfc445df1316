"""The table of loss terms. A new term is one function and one row here.

The recipe takes from it the keys of ``losses`` and their defaults, ``jasper check`` and the metrics the names, the
stages the learned numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jasper_jax.losses import contrastive, sigmoid
from jasper_jax.losses.comparison import Comparison, HeadDim
from jasper_jax.losses.distillation import cosine_loss, squared_difference
from jasper_jax.losses.geometry import Arrays, cross_cosines
from jasper_jax.losses.ranking import margin_loss, ranking_loss
from jasper_jax.losses.relative_rows import relative_from_matrices

Values = dict[str, jax.Array]
"""Head -> scalar."""


@dataclass(frozen=True)
class Term:
    """One loss term.

    ``function``: ``(comparison, heads)`` -> a scalar for each of the heads, which are those that use the term.
    ``weight``: in a recipe that does not say one; a term of weight 0 is not computed.
    ``settings``: further numbers and switches of the term and their defaults, keys of ``losses`` beside the weight.
    ``positive``: the settings that cannot be 0.
    ``learned``: scalars that are trained with the student, and their values at the start.
    ``learned_if``: the switch among the settings that says whether there are any; None: always.
    ``nested``: taken at every nested dimension of a head, and averaged; else at the full vector alone.
    ``same_dimension``: the target must have as many dimensions as the head.
    ``stages``: the kinds of stage that it is for; None: all.
    ``about``: a sentence on the term (under an empty name) and on each setting, for docs/recipe.md.
    """

    function: Callable[[Comparison, Sequence[str]], Values]
    weight: float
    settings: Mapping[str, float] = field(default_factory=dict)
    positive: tuple[str, ...] = ()
    learned: Mapping[str, float] = field(default_factory=dict)
    learned_if: str | None = None
    nested: bool = True
    same_dimension: bool = False
    stages: tuple[str, ...] | None = None
    about: Mapping[str, str] = field(default_factory=dict)


def _cosine(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 1 on the full vectors."""
    return {head: cosine_loss(comparison.students[head], comparison.target) for head in heads}


def _similarity(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 2 at each dimension."""
    rows = comparison.rows(heads)
    return comparison.by_head(squared_difference(comparison.similarities(rows), comparison.target_similarities), rows)


def _relative(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Equation 3 at each dimension, all in one call: they share the order of the teacher's pairs."""
    rows = comparison.rows(heads)
    similarities = comparison.similarities(rows)
    margins = jnp.asarray([comparison.settings[row.head]["margin"] for row in rows], similarities.dtype)
    teacher, order = comparison.target_similarities, comparison.order
    return comparison.by_head(relative_from_matrices(similarities, teacher, order, margins), rows)


def _sigmoid(comparison: Comparison, heads: Sequence[str]) -> Values:
    """arXiv 2303.15343 on the full vectors."""
    same, learned = comparison.batch["same"], comparison.learned["sigmoid"]
    return {head: sigmoid.sigmoid_loss(comparison.students[head], comparison.target, same, learned) for head in heads}


def _contrastive(comparison: Comparison, heads: Sequence[str]) -> Values:
    """InfoNCE at each dimension, in which the target masks false negatives."""
    rows, learned = comparison.rows(heads), comparison.learned.get("contrastive")
    return comparison.by_head([_info_nce(comparison, row, learned) for row in rows], rows)


def _info_nce(comparison: Comparison, row: HeadDim, learned: Mapping[str, jax.Array] | None) -> jax.Array:
    settings, weights = comparison.settings[row.head], comparison.batch["weights"]
    blocks = [(comparison.scores(row), comparison.answers, comparison.target_scores)]
    vectors = comparison.students[row.head][:, : row.dim]
    if settings["contrast_queries"]:
        blocks.append(_among(comparison, comparison.queries(vectors), comparison.queries(comparison.target)))
    if settings["contrast_passages"]:
        passages, targets = comparison.candidates(vectors), comparison.candidates(comparison.target)
        blocks.append(_among(comparison, passages[: len(weights)], targets[: len(weights)]))
    scores, masked, target_scores = (jnp.concatenate(parts, axis=1) for parts in zip(*blocks))
    if settings["mask"]:
        above = contrastive.false_negatives(
            target_scores, jnp.diagonal(comparison.target_scores), settings["mask_margin"]
        )
        masked = masked | above
    scale = 1 / settings["temperature"]
    if learned is not None:
        scale = scale * jnp.exp(learned["log_scale"])
    return contrastive.info_nce(scores, masked, scale, weights)


def _among(comparison: Comparison, vectors: Arrays, targets: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosines ``[Q, Q]`` among the queries or among their answers, which of them are no negatives of each other (a text
    and itself, and those that share an answer), and the target's cosines."""
    answers = comparison.answers[:, : len(vectors)]
    return cross_cosines(vectors, vectors), answers | answers.T, cross_cosines(targets, targets)


def _ranking(comparison: Comparison, heads: Sequence[str]) -> Values:
    """KL from the target's softmax over each query's candidates, at each dimension."""
    rows, weights = comparison.rows(heads), comparison.batch["weights"]

    def of(row: HeadDim) -> jax.Array:
        temperature = comparison.settings[row.head]["ranking_temperature"]
        return ranking_loss(comparison.scores(row), comparison.target_scores, temperature, weights)

    return comparison.by_head([of(row) for row in rows], rows)


def _margin(comparison: Comparison, heads: Sequence[str]) -> Values:
    """Margin-MSE at each dimension."""
    rows, weights = comparison.rows(heads), comparison.batch["weights"]
    values = [margin_loss(comparison.scores(row), comparison.target_scores, weights) for row in rows]
    return comparison.by_head(values, rows)


def _spread(comparison: Comparison, heads: Sequence[str]) -> Values:
    """The spread of the queries and that of their answers, at each dimension."""
    rows, count = comparison.rows(heads), len(comparison.batch["weights"])

    def of(row: HeadDim) -> jax.Array:
        vectors = comparison.students[row.head][:, : row.dim]
        return contrastive.spread_loss(vectors[:count]) + contrastive.spread_loss(vectors[count : 2 * count])

    return comparison.by_head([of(row) for row in rows], rows)


TERMS: dict[str, Term] = {
    "cosine": Term(
        _cosine,
        10.0,
        nested=False,
        same_dimension=True,
        about={"": "Angle between a text's vectors of student and target (equation 1)."},
    ),
    "similarity": Term(
        _similarity,
        200.0,
        about={"": "Squared difference of the similarities of all texts of a batch (equation 2)."},
    ),
    "relative": Term(
        _relative,
        20.0,
        settings={"margin": 0.015},
        about={
            "": "Pairs of texts that the target finds more similar than other pairs, by a hinge (equation 3).",
            "margin": "By how much such a pair has to be more similar.",
        },
    ),
    "sigmoid": Term(
        _sigmoid,
        0.0,
        learned=sigmoid.START,
        nested=False,
        same_dimension=True,
        stages=("images",),
        about={"": "Images with their own and with other captions, as SigLIP (arXiv 2303.15343)."},
    ),
    "contrastive": Term(
        _contrastive,
        0.0,
        settings={
            "temperature": 0.05,
            "learn_temperature": False,
            "mask": True,
            "mask_margin": 0.0,
            "contrast_queries": False,
            "contrast_passages": False,
        },
        positive=("temperature",),
        learned=contrastive.START,
        learned_if="learn_temperature",
        stages=("pairs",),
        about={
            "": "Each query's passage among all passages of the batch (InfoNCE).",
            "temperature": "By which similarities are divided in ``contrastive``.",
            "learn_temperature": "Train the temperature, from that start.",
            "mask": "Leave out passages that the target finds closer to the query than its own.",
            "mask_margin": "Leave out those too that are less close than its own by less than this.",
            "contrast_queries": "The other queries are negatives too.",
            "contrast_passages": "The other passages are negatives of a passage too.",
        },
    ),
    "ranking": Term(
        _ranking,
        0.0,
        settings={"ranking_temperature": 0.05},
        positive=("ranking_temperature",),
        stages=("pairs",),
        about={
            "": "The target's distribution over a query's candidates (KL divergence).",
            "ranking_temperature": "Of both softmaxes.",
        },
    ),
    "margin_mse": Term(
        _margin,
        0.0,
        stages=("pairs",),
        about={"": "Squared difference of the margins between a query's passage and its other candidates."},
    ),
    "spread": Term(
        _spread,
        0.0,
        stages=("pairs",),
        about={"": "How far queries, and passages, are from being spread over all directions."},
    ),
}
"""In the order in which they are added up."""
