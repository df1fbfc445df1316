"""The terms on labelled pairs, against formulas written out and against sentence-transformers' losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.losses import (
    HeadLoss,
    contrastive_loss,
    distillation_losses,
    margin_loss,
    ranking_loss,
    spread_loss,
)
from jasper_jax.losses.contrastive import false_negatives
from jasper_jax.losses.geometry import cross_cosines

PAIRS, NEGATIVES, DIM = 5, 2, 8
CANDIDATES = PAIRS * (1 + NEGATIVES)


def rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    """Student's and teachers' queries and candidates; answers are near their queries."""
    rng = np.random.default_rng(0)
    queries, targets = rng.normal(size=(PAIRS, DIM)), rng.normal(size=(PAIRS, DIM + 3))
    return {
        "queries": queries.astype(np.float32),
        "candidates": (rng.normal(size=(CANDIDATES, DIM)) + np.tile(queries, (1 + NEGATIVES, 1))).astype(np.float32),
        "target_queries": targets.astype(np.float32),
        "target_candidates": (rng.normal(size=(CANDIDATES, DIM + 3)) + np.tile(targets, (1 + NEGATIVES, 1))).astype(
            np.float32
        ),
    }


def scores_of(vectors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    student = rows(vectors["queries"]) @ rows(vectors["candidates"]).T
    return student, rows(vectors["target_queries"]) @ rows(vectors["target_candidates"]).T


def test_contrastive_is_the_formula_one_query_after_the_other(vectors) -> None:
    s, t = scores_of(vectors)
    weights = np.linspace(0.2, 1, PAIRS)
    expected = []
    for i in range(PAIRS):
        others = [j for j in range(CANDIDATES) if j != i and t[i, j] <= t[i, i] - 0.02]
        expected.append(-np.log(np.exp(s[i, i] / 0.1) / sum(np.exp(s[i, j] / 0.1) for j in [i, *others])))
    masked = false_negatives(t, np.diagonal(t), 0.02)
    assert masked.any(), "nothing to mask: the test says nothing"
    found = contrastive_loss(vectors["queries"], vectors["candidates"], 0.1, masked=masked, weights=weights)
    np.testing.assert_allclose(found, np.average(expected, weights=weights), rtol=1e-5)


def test_ranking_margin_and_spread_are_the_formulas(vectors) -> None:
    s, t = scores_of(vectors)
    p, q = (np.exp(x / 0.1) / np.exp(x / 0.1).sum(1, keepdims=True) for x in (t, s))
    np.testing.assert_allclose(ranking_loss(s, t, 0.1), np.mean((p * np.log(p / q)).sum(1)), rtol=1e-4)
    squares = [
        ((s[i, i] - s[i, j]) - (t[i, i] - t[i, j])) ** 2 for i in range(PAIRS) for j in range(CANDIDATES) if j != i
    ]
    np.testing.assert_allclose(margin_loss(s, t), np.mean(squares), rtol=1e-5)
    x = rows(vectors["queries"])
    between = [(x[i] @ x[j]) ** 2 for i in range(PAIRS) for j in range(PAIRS) if i != j]
    np.testing.assert_allclose(spread_loss(vectors["queries"]), np.mean(between), rtol=1e-5)


def test_spread_of_one_row_is_0_with_a_finite_gradient() -> None:
    value, gradient = jax.value_and_grad(spread_loss)(jnp.ones((1, 4)))
    assert float(value) == 0
    assert np.isfinite(gradient).all()


def test_a_batch_too_small_for_its_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an answer for each query"):
        contrastive_loss(np.ones((3, 4), np.float32), np.ones((2, 4), np.float32))


def terms(vectors: dict[str, np.ndarray], **losses) -> dict[str, jax.Array]:
    """The terms of one head of a whole batch, by name."""
    answers = np.eye(PAIRS, CANDIDATES, dtype=bool)
    batch = {"answers": answers, "weights": np.ones(PAIRS, np.float32)}
    students = jnp.concatenate([jnp.asarray(vectors["queries"]), jnp.asarray(vectors["candidates"])])
    target = np.concatenate([vectors["target_queries"], vectors["target_candidates"]])
    head = HeadLoss(cosine=0, similarity=0, relative=0, **losses)
    return distillation_losses({"fc1": students}, {"fc1": target}, {"fc1": head}, batch=batch)["fc1"]


def test_a_known_answer_is_no_negative(vectors) -> None:
    """Of a query with two answers the second is left out, whatever the target says."""
    answers = np.eye(PAIRS, CANDIDATES, dtype=bool)
    answers[0, PAIRS] = True
    batch = {"answers": np.concatenate([answers, answers[:1]]), "weights": np.ones(PAIRS, np.float32)}  # one is filling
    students = np.concatenate([vectors["queries"], vectors["candidates"]])
    head = HeadLoss(cosine=0, similarity=0, relative=0, contrastive=1, mask=False)
    found = distillation_losses({"fc1": students}, {"fc1": students}, {"fc1": head}, batch=batch)["fc1"]["contrastive"]
    expected = contrastive_loss(vectors["queries"], vectors["candidates"], masked=answers)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(found) < float(contrastive_loss(vectors["queries"], vectors["candidates"]))


def test_nested_dimensions_are_averaged(vectors) -> None:
    both = terms(vectors, contrastive=1, ranking=1, margin_mse=1, spread=1, nested=(DIM, 4))
    short = {**vectors, "queries": vectors["queries"][:, :4], "candidates": vectors["candidates"][:, :4]}
    for name in ("contrastive", "ranking", "margin_mse", "spread"):
        expected = np.mean([terms(x, **{name: 1})[name] for x in (vectors, short)])
        np.testing.assert_allclose(both[name], expected, rtol=1e-5, err_msg=name)


# sentence-transformers, on vectors in place of a model.


def value_and_gradients(loss, *inputs) -> tuple[float, list[np.ndarray]]:
    import torch

    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    value = loss(*leaves)
    value.backward()
    return float(value.detach()), [leaf.grad.numpy() for leaf in leaves]


def compare(ours, theirs, vectors) -> None:
    """Both functions of (queries, candidates): values and gradients to 1e-5."""
    inputs = vectors["queries"], vectors["candidates"]
    value, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*map(jnp.asarray, inputs))
    expected, their_gradients = value_and_gradients(theirs, *inputs)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, wanted in zip(gradients, their_gradients):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def columns(candidates):
    return [candidates[k * PAIRS : (k + 1) * PAIRS] for k in range(1 + NEGATIVES)]


def test_contrastive_is_that_of_sentence_transformers(vectors) -> None:
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = torch.nn.Sequential(torch.nn.Identity())  # never called
    loss = CachedMultipleNegativesRankingLoss(model, scale=20.0)

    def theirs(queries, candidates):
        return loss.calculate_loss([[queries], *([column] for column in columns(candidates))])

    compare(contrastive_loss, theirs, vectors)


def test_masked_contrastive_is_that_of_gist_embed(vectors) -> None:
    """With queries among queries and passages among passages, as its defaults are."""
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedGISTEmbedLoss

    loss = CachedGISTEmbedLoss.__new__(CachedGISTEmbedLoss)
    torch.nn.Module.__init__(loss)
    loss.similarity_fct, loss.cross_entropy_loss = torch.nn.CosineSimilarity(dim=-1), torch.nn.CrossEntropyLoss()
    loss.temperature, loss.mini_batch_size, loss.show_progress_bar = 0.05, 32, False
    loss.margin_strategy, loss.margin, loss.gather_across_devices = "absolute", 0.02, False
    loss.contrast_anchors = loss.contrast_positives = True
    guide = [[torch.tensor(vectors["target_queries"])]]
    guide += [[column] for column in columns(torch.tensor(vectors["target_candidates"]))]

    def theirs(queries, candidates):
        return loss.calculate_loss([[queries], *([column] for column in columns(candidates))], guide)

    def ours(queries, candidates):
        given = {**vectors, "queries": queries, "candidates": candidates}
        options = {"mask_margin": 0.02, "contrast_queries": True, "contrast_passages": True}
        return terms(given, contrastive=1, **options)["contrastive"]

    compare(ours, theirs, vectors)


def own_scores(queries, candidates):
    """Each query's scores of its own candidates, the answer first: ``[B, 1 + n]``."""
    return jnp.stack([jnp.diagonal(cross_cosines(queries, column)) for column in columns(candidates)], axis=1)


@pytest.mark.parametrize("name", ["DistillKLDivLoss", "MarginMSELoss"])
def test_ranking_and_margin_are_those_of_sentence_transformers(vectors, name) -> None:
    import torch
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import pairwise_cos_sim

    labels = own_scores(vectors["target_queries"], vectors["target_candidates"])
    options = {"temperature": 0.1} if name == "DistillKLDivLoss" else {}
    loss = getattr(losses, name)(None, similarity_fct=pairwise_cos_sim, **options)

    def theirs(queries, candidates):
        return loss.compute_loss_from_embeddings([queries, *columns(candidates)], torch.tensor(np.array(labels)))

    def ours(queries, candidates):
        scores = own_scores(queries, candidates)
        if options:
            return 0.1**2 * ranking_loss(scores, labels, 0.1)
        return jnp.mean(jax.vmap(lambda s, t: margin_loss(s[None], t[None]))(scores, labels))  # the answer comes first

    compare(ours, theirs, vectors)
