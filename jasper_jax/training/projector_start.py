"""The closed-form start of the projector: ridge regression from images to caption vectors, through the text encoder.

A regression from the vision tokens onto the captions' pooled vectors has a closed form, but an image passes the text
encoder first. Around one input that encoder is nearly linear, so the regression is taken back through it:

1. ridge: pooled caption vector ≈ y₀ + B (x - x̄), x the pooled vision tokens of an image;
2. a point: image tokens e₀ whose pooled vector points where y₀ does (Gauss-Newton steps on one input);
3. J, the derivative of the pooled vector by the image tokens at e₀; kernel = B Jᵀ (J Jᵀ + μ)⁻¹, in the norm at e₀.

With one matrix for every token (``projector: linear``) x is the mean of an image's tokens and e₀ one token, repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.batches.image_batches import decode_all
from jasper_jax.data.draw_order import sample_records
from jasper_jax.data.pairs import PairStore
from jasper_jax.embedder import Embedder
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.progress import bar
from jasper_jax.student.heads import ridge_head
from jasper_jax.student.student import Student
from jasper_jax.vision.vision_model import VisionModel
from jasper_jax.vision.words import word_table

POINT_STEPS = 6
DAMPING = 1e-2
"""μ relative to the mean eigenvalue of J Jᵀ."""
_AT_ONCE = 32


def ridge_projector(
    recipe: Recipe, student: Student, params: Mapping[str, Any], pairs: PairStore, embedder: Embedder, progress: bool
) -> dict[str, np.ndarray]:
    """The projector's start, ``{"kernel", "bias"}`` float32, from up to ``training.ridge_texts`` training pairs.

    Args:
      params: ``encoder`` and ``vision`` on this process's device.
      embedder: the student as it stands.
    """
    vision_model, vision = student.vision_model, recipe.student.vision
    assert vision_model is not None
    assert vision is not None
    indices = sample_records(pairs.size("train"), recipe.training.ridge_texts, recipe.seed)
    x, captions = _features(recipe, vision_model, params, pairs, indices, progress)
    y = embedder.pooled(captions, "passage")
    x = x.reshape(len(indices), -1) if vision_model.projector == "joint" else x.mean(axis=1)
    head = ridge_head(x, y, y.shape[1], vision.projector_penalty)
    words = np.asarray(word_table(params["encoder"]), np.float32).mean(axis=0)
    return through(student, params, x.mean(axis=0, dtype=np.float64), y.mean(axis=0), head["kernel"], words)


def through(
    student: Student, params: Mapping[str, Any], x: np.ndarray, y: np.ndarray, kernel: np.ndarray, words: np.ndarray
) -> dict[str, np.ndarray]:
    """Steps 2 and 3: the projector that does what ``kernel [X, D]`` does around the means ``x``, ``y`` of its sides.
    ``words``: the token ``[D]`` from which the point is looked for."""
    vision_model = student.vision_model
    assert vision_model is not None
    pooled, slope = _response(student, params)
    free = np.tile(words, vision_model.projected[1] // vision_model.width).astype(np.float32)
    direction = y / np.linalg.norm(y)
    points = []
    for _ in range(POINT_STEPS + 1):
        now = np.asarray(pooled(free), np.float64)
        norm = np.linalg.norm(now)
        back = _inverse(np.asarray(slope(free), np.float64))
        points.append((now @ direction / norm, free, norm, back))
        free = (free + back @ (direction * norm - now)).astype(np.float32)
    _, free, norm, back = max(points, key=lambda point: point[0])
    solved = norm / np.linalg.norm(y) * np.asarray(kernel, np.float64) @ back.T
    return {"kernel": solved.astype(np.float32), "bias": (free - x @ solved).astype(np.float32)}


def _inverse(slope: np.ndarray) -> np.ndarray:
    """``Jᵀ (J Jᵀ + μ)⁻¹`` of ``J [D, F]``: ``[F, D]``."""
    square = slope @ slope.T
    damped = square + DAMPING * np.trace(square) / len(square) * np.eye(len(square))
    return np.linalg.solve(damped, slope).T


def _response(
    student: Student, params: Mapping[str, Any]
) -> tuple[Callable[[np.ndarray], jax.Array], Callable[[np.ndarray], jax.Array]]:
    """What an image's tokens, given as the projector's output ``[F]``, do: the pooled vector ``[D]``, and its
    derivative ``[D, F]``."""
    vision_model = student.vision_model
    assert vision_model is not None

    def pooled(encoder: Any, free: jax.Array) -> jax.Array:
        tokens = jnp.broadcast_to(free.reshape(1, -1, vision_model.width), (1, vision_model.tokens, vision_model.width))
        return student.pooled_tokens(encoder, tokens)[0]

    def slope(encoder: Any, free: jax.Array) -> jax.Array:
        out, back = jax.vjp(lambda tokens: pooled(encoder, tokens), free)
        return jax.lax.map(lambda one: back(one)[0], jnp.eye(len(out), dtype=out.dtype), batch_size=_AT_ONCE)

    run, turn = jax.jit(pooled), jax.jit(slope)
    return lambda free: run(params["encoder"], free), lambda free: turn(params["encoder"], free)


def _features(
    recipe: Recipe,
    vision_model: VisionModel,
    params: Mapping[str, Any],
    pairs: PairStore,
    indices: np.ndarray,
    progress: bool,
) -> tuple[np.ndarray, list[str]]:
    """Pooled vision tokens ``[m, n, C]`` of training pairs, and their captions."""
    assert recipe.images is not None
    features = jax.jit(lambda vision, pixels: vision_model.features({"vision": vision}, pixels))
    x = np.empty((len(indices), vision_model.tokens, vision_model.encoder.hidden_size), np.float32)
    captions: list[str] = []
    with bar("projector's start", len(indices), "images", enabled=progress) as shown:
        for start in range(0, len(indices), _AT_ONCE):
            here = indices[start : start + _AT_ONCE]
            pixels = decode_all(pairs, "train", vision_model.preprocessing, here, recipe.images.max_pixels)
            padded = np.zeros((_AT_ONCE, *pixels.shape[1:]), np.uint8)
            padded[: len(here)] = pixels
            x[start : start + len(here)] = np.asarray(features(params["vision"], padded))[: len(here)]
            captions += [pair.caption for pair in pairs.read("train", here)]
            shown.advance(len(here))
    return x, captions
