"""A linear probe: how well a logistic regression tells the labels of texts from their vectors.

The protocol of MTEB's classification tasks: a regression on the vectors of 8 texts of each label, tested by its
accuracy on other texts, and again with other texts drawn, 10 times. Those tasks come with a split for training; here a
file of labels is one set, so the texts that a draw does not take test it. The regression is scikit-learn's
``LogisticRegression`` with its default penalty. Letters: ``n`` texts, ``E`` dimension, ``K`` labels, ``t`` texts that
are trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import log_softmax

from jasper_jax.data.augment import keyed_hash
from jasper_jax.evaluation.similarity import unit

DRAWS = 10
PER_LABEL = 8
"""Texts of each label that a draw trains on; of a label with fewer than 16, half of them."""


@dataclass(frozen=True)
class ClassificationScore:
    """Means over the draws."""

    accuracy: float
    """Share of the tested texts whose label is predicted."""
    spread: float
    """Standard deviation of the accuracy over the draws."""
    f1: float
    """Mean over the labels of the F1 score."""
    texts: int
    labels: int


class ClassificationTest:
    """``texts``, the ``label [n]`` of each as a number, and the texts ``trains [draws, n]`` that each draw trains on.

    Which these are depends on the texts, and not on their order.
    """

    def __init__(self, labels: Mapping[str, str]):
        """``labels``: by text; at least two, each of at least two texts."""
        self.texts = list(labels)
        names, self.label = np.unique(list(labels.values()), return_inverse=True)
        self.labels = len(names)
        self.trains = np.zeros((DRAWS, len(self.texts)), bool)
        members = [np.flatnonzero(self.label == k) for k in range(self.labels)]
        for draw, chosen in enumerate(self.trains):
            place = np.array([keyed_hash(text, draw, "classification") for text in self.texts], np.uint64)
            for rows in members:
                chosen[rows[np.argsort(place[rows])][: min(PER_LABEL, len(rows) // 2)]] = True


def score_classification(vectors: ArrayLike, test: ClassificationTest) -> ClassificationScore:
    """Accuracy and macro F1 of a linear probe on ``vectors [n, E]``, in the order of ``test.texts``; they are
    normalised."""
    rows = unit(vectors).astype(np.float64)
    if len(rows) != len(test.texts):
        raise ValueError(f"{len(rows)} vectors for {len(test.texts)} texts of the test")
    accuracies, f1 = [], []
    for trains in test.trains:
        kernel, bias = fit_probe(rows[trains], test.label[trains], test.labels)
        predicted, expected = (rows[~trains] @ kernel + bias).argmax(axis=1), test.label[~trains]
        accuracies.append(np.mean(predicted == expected))
        hits = np.bincount(expected[predicted == expected], minlength=test.labels)
        counts = (np.bincount(which, minlength=test.labels) for which in (predicted, expected))
        f1.append(np.mean(2 * hits / sum(counts)))  # every label is expected at least once
    return ClassificationScore(
        float(np.mean(accuracies)), float(np.std(accuracies)), float(np.mean(f1)), len(rows), test.labels
    )


def fit_probe(rows: np.ndarray, label: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """The kernel ``[E, K]`` and bias ``[K]`` of a logistic regression of ``label [t]`` on ``rows [t, E]``.

    Minimises the sum over texts of the cross entropy plus half the kernel's squared norm (scikit-learn's ``C=1``). Of
    two labels that is the squared norm of the difference of their columns: all of the softmax's own, once more.
    """
    penalty = 2.0 if labels == 2 else 1.0
    targets = np.eye(labels)[label]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[labels:].reshape(-1, labels), flat[:labels]
        scores = log_softmax(rows @ kernel + bias, axis=1)
        error = np.exp(scores) - targets
        gradient = np.concatenate([error.sum(axis=0), (rows.T @ error + penalty * kernel).ravel()])
        return float(-(scores * targets).sum() + penalty / 2 * (kernel**2).sum()), gradient

    start = np.zeros(labels * (1 + rows.shape[1]))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-6}).x
    return found[labels:].reshape(-1, labels), found[:labels]
