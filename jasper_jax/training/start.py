"""How a stage's new heads begin: random, or the closed-form ridge solution (``heads.<name>.init: ridge``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jasper_jax.config import Recipe
from jasper_jax.data.image_batches import decode_all
from jasper_jax.data.pairs import PairStore
from jasper_jax.data.texts import TextStore
from jasper_jax.data.vectors import TeacherView
from jasper_jax.embedder import Embedder
from jasper_jax.errors import UserError
from jasper_jax.heads import ridge_head
from jasper_jax.progress import bar
from jasper_jax.student import Student
from jasper_jax.tokenization import Tokenizer
from jasper_jax.vision.words import word_table


def ridge_heads(
    recipe: Recipe,
    names: Sequence[str],
    dims: Mapping[str, int],
    params: Mapping[str, Any],
    embedder: Embedder,
    texts: TextStore,
    view: TeacherView | None,
) -> dict[str, dict[str, np.ndarray]]:
    """Ridge solutions for those of ``names`` whose recipe asks for them; an empty dict when none does.

    ``embedder`` holds the student as it stands (its pooled vectors are the regressors). A head taught by another
    head regresses on that head's present output, so target heads come first.
    """
    wanted = [n for n in names if recipe.heads[n].init == "ridge"]
    if not wanted:
        return {}
    size = texts.size("train")
    number = min(recipe.training.ridge_texts, size)
    indices = np.sort(np.random.default_rng(recipe.seed).choice(size, number, replace=False))
    rows = texts.read("train", indices)
    pooled = embedder.pooled([r.text for r in rows], [r.kind for r in rows])
    heads: dict[str, Any] = dict(params["heads"])
    solved: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(wanted, key=lambda n: recipe.heads[n].target in recipe.heads):
        source = recipe.heads[name].target
        if source == "teachers":
            assert view is not None
            target = view.read("train", indices)
        elif source == "pooled":
            target = _normalized(pooled)
        else:
            head = heads[source]
            target = _normalized(pooled @ np.asarray(head["kernel"]) + np.asarray(head.get("bias", 0.0)))
        if dims[name] > target.shape[1]:
            raise UserError(
                f"heads.{name}.init: ridge reaches at most its target's {target.shape[1]} dimensions, not {dims[name]}"
            )
        solved[name] = heads[name] = ridge_head(
            pooled, target, dims[name], recipe.training.ridge_penalty, recipe.heads[name].bias
        )
    return solved


def ridge_projector(
    recipe: Recipe, student: Student, params: Mapping[str, Any], pairs: PairStore, tokenizer: Tokenizer, progress: bool
) -> dict[str, np.ndarray]:
    """The projector's closed-form start: the ridge regression from each of an image's pooled vision tokens to the mean
    input embedding of its caption's words. An image then enters the text student as so many guesses at its words.

    A regression guesses near the mean; the guesses' deviations from it are scaled to vary as the words do, or the
    norm after the embeddings would see hardly more than positions.

    Args:
      params: ``encoder`` and ``vision`` on this process's device.
      pairs: up to ``training.ridge_texts`` training pairs are taken.
    """
    sight, images = student.sight, recipe.images
    assert sight is not None
    assert images is not None
    number = min(recipe.training.ridge_texts, pairs.size("train"))
    indices = np.sort(np.random.default_rng(recipe.seed).choice(pairs.size("train"), number, replace=False))
    features = jax.jit(lambda vision, pixels: sight.features({"vision": vision}, pixels))
    table, size = np.asarray(word_table(params["encoder"]), np.float32), 32
    x = np.empty((number, sight.tokens, sight.encoder.hidden_size), np.float32)
    y = np.empty((number, sight.width), np.float32)
    with bar("projector's start", number, "images", enabled=progress) as shown:
        for start in range(0, number, size):
            here = indices[start : start + size]
            pixels = decode_all(pairs, "train", sight.preprocessing, here, images.max_pixels)
            padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
            padded[: len(here)] = pixels
            x[start : start + len(here)] = np.asarray(features(params["vision"], padded))[: len(here)]
            captions = [pair.caption for pair in pairs.read("train", here)]
            for i, ids in enumerate(tokenizer.encode(captions), start):
                words = tokenizer.without_special(ids)
                y[i] = table[words if len(words) else ids].mean(axis=0)
            shown.advance(len(here))
    every = x.reshape(-1, x.shape[-1])
    solved = ridge_head(every, np.repeat(y, sight.tokens, axis=0), sight.width, recipe.training.ridge_penalty)
    middle = every.mean(axis=0, dtype=np.float64)
    guessed = (every - middle.astype(np.float32)) @ solved["kernel"]
    scale = np.sqrt(y.var(axis=0).sum() / max(float(guessed.var(axis=0).sum()), 1e-12))
    bias = solved["bias"] + middle @ solved["kernel"] * (1 - scale)
    return {"kernel": (solved["kernel"] * scale).astype(np.float32), "bias": bias.astype(np.float32)}


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
