"""The closed-form start of a stage's new heads (``heads.<name>.init: ridge``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jasper_jax.data.draw_order import sample_records
from jasper_jax.data.texts import TextStore
from jasper_jax.embedder import Embedder
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.heads import project_rows, ridge_head
from jasper_jax.teachers.vectors import TeacherView, normalize_rows


def ridge_heads(
    recipe: Recipe,
    names: Sequence[str],
    dims: Mapping[str, int],
    params: Mapping[str, Any],
    embedder: Embedder,
    texts: TextStore,
    view: TeacherView | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Ridge solutions of the heads ``names``, from up to ``training.ridge_texts`` training texts.

    ``embedder`` holds the student as it stands; its pooled vectors are the regressors. A head taught by another head
    regresses on that head's present output, so target heads come first.
    """
    indices = sample_records(texts.size("train"), recipe.training.ridge_texts, recipe.seed)
    rows = texts.read("train", indices)
    pooled = embedder.pooled([r.text for r in rows], [r.kind for r in rows])
    heads: dict[str, Any] = dict(params["heads"])
    solved: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(names, key=lambda n: recipe.heads[n].target in recipe.heads):
        source = recipe.heads[name].target
        if source == "teachers":
            assert view is not None
            target = view.read("train", indices)
        elif source == "pooled":
            target = normalize_rows(pooled)
        else:
            target = normalize_rows(project_rows(heads[source], pooled))
        if dims[name] > target.shape[1]:
            raise UserError(
                f"heads.{name}.init: ridge reaches at most its target's {target.shape[1]} dimensions, not {dims[name]}"
            )
        solved[name] = heads[name] = ridge_head(
            pooled, target, dims[name], recipe.training.ridge_penalty, recipe.heads[name].bias
        )
    return solved
