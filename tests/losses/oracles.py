"""The formulas of the three losses in numpy, and vectors to try them on."""

from __future__ import annotations

import jax
import numpy as np

from jasper_jax.losses import HeadLoss, distillation_losses


def rows(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def oracle(student: np.ndarray, teacher: np.ndarray, margin: float = 0.015) -> dict[str, float]:
    """The formulas, one pair of pairs after the other."""
    student, teacher = rows(np.asarray(student, np.float64)), rows(np.asarray(teacher, np.float64))
    s, t = student @ student.T, teacher @ teacher.T
    upper = [(i, j) for i in range(len(s)) for j in range(i + 1, len(s))]
    hinges = [
        max(0.0, s[q] - s[p] + margin) if t[p] > t[q] else max(0.0, s[p] - s[q] + margin) if t[p] < t[q] else 0.0
        for k, p in enumerate(upper)
        for q in upper[:k]
    ]
    values = {"similarity": np.mean((s - t) ** 2), "relative": np.mean(hinges) if hinges else 0.0}
    if student.shape == teacher.shape:
        values["cosine"] = np.mean(1 - (student * teacher).sum(1))
    return values


def draw(seed: int, batch: int, dim: int, teacher_dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(batch, dim)), rng.normal(size=(batch, teacher_dim or dim))
    shared = min(dim, teacher.shape[1])
    student[:, :shared] += 2 * teacher[:, :shared]
    return student.astype(np.float32), teacher.astype(np.float32)


def distil(students, targets, spec):
    """`distillation_losses`, compiled as one program; targets that are one array stay one array."""
    distinct = {id(target): target for target in targets.values()}

    def run(students, distinct):
        same = {head: distinct[id(target)] for head, target in targets.items()}
        return distillation_losses(students, same, spec)

    return jax.jit(run)(students, distinct)


def four_heads() -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, HeadLoss]]:
    long, teacher = draw(11, 6, 16)
    students = {"fc1": long, "fc2": draw(12, 6, 8)[0], "fc3": draw(13, 6, 4)[0], "fc4": draw(14, 6, 4)[0]}
    spec = {
        "fc1": HeadLoss(nested=(4, 8, 16)),
        "fc2": HeadLoss(cosine=0, margin=0.2),
        "fc3": HeadLoss(cosine=0, similarity=0, nested=(2,)),
        "fc4": HeadLoss(cosine=0, relative=0),
    }
    return students, teacher, spec
