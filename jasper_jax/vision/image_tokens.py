"""Image tokens of a batch: images are encoded, then inserted among the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.batch_shapes import RowBatch
from jasper_jax.encoders.layout import Inserted
from jasper_jax.vision.images import ImageFile, open_image
from jasper_jax.vision.vision_model import VisionModel

AT_ONCE = {"cpu": 8}
AT_ONCE_ACCELERATOR = 64
"""Images per call of the vision encoder."""


@partial(jax.jit, static_argnames=("vision_model", "dtype"))
def _tokens(vision_model: VisionModel, dtype: str, params: Any, pixels: jax.Array) -> jax.Array:
    return vision_model.image_tokens(params, pixels, compute_dtype=jnp.dtype(dtype))


def decode(vision_model: VisionModel, images: Sequence[tuple[Any, str]]) -> np.ndarray:
    """(image, its name in errors) -> ``[n, S, S, 3]`` uint8. UserError: an unusable image."""

    def prepare(item: tuple[Any, str]) -> np.ndarray:
        image, where = item
        image = image.read(where) if isinstance(image, ImageFile) else image
        source = bytes(image) if isinstance(image, (bytearray, memoryview)) else image
        return vision_model.preprocessing.prepare(open_image(source, where))

    with ThreadPoolExecutor(2) as pool:
        pixels = list(pool.map(prepare, images))
    size = vision_model.preprocessing.size
    return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8)


def image_tokens(
    vision_model: VisionModel, dtype: str, params: Mapping[str, Any], images: Sequence[tuple[Any, str]]
) -> jax.Array:
    """``[m, n, D]`` tokens of images; m is a power of two, at least their number, and the rest is padding."""
    at_once = AT_ONCE.get(jax.default_backend(), AT_ONCE_ACCELERATOR)
    count = 1 << max(len(images) - 1, 0).bit_length()
    at_once, parts = min(at_once, count), []
    for start in range(0, count, at_once):
        pixels = decode(vision_model, images[start : start + at_once])
        if not len(pixels):
            parts.append(jnp.zeros_like(parts[0]))
            continue
        padded = np.zeros((at_once, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        parts.append(_tokens(vision_model, dtype, params, padded))
    return jnp.concatenate(parts)


def inserted(
    vision_model: VisionModel,
    dtype: str,
    params: Mapping[str, Any],
    batch: RowBatch,
    ids: np.ndarray,
    images: Sequence[Sequence[tuple[Any, str]]],
) -> Inserted | None:
    """The image tokens of a batch with rows ``ids [R, L]``; ``images[i]`` are those of text i. None: no images."""
    batch_images = [image for text in batch.indices for image in images[text]]
    if not batch_images:
        return None
    which = np.full(ids.shape, -1, np.int32)
    first = 0
    for text, row, column in zip(batch.indices, batch.packing.row, batch.packing.column, strict=True):
        count = len(images[text]) * vision_model.tokens
        columns = column + np.flatnonzero(ids[row, column:] == vision_model.image_id)[:count] if count else []
        which[row, columns] = np.arange(first, first + count)
        first += count
    tokens = image_tokens(vision_model, dtype, params, batch_images)
    return Inserted(tokens.reshape(-1, tokens.shape[-1]), jnp.asarray(which))
