"""Inputs of ``encode``: a text, an image, or a list of texts and images.

A text is a ``str``; an image is a PIL image, the ``bytes`` of a file, or, where the caller has named the folder
``image_root``, the ``Path`` of a file in it (an input may come from a stranger). A list has these or dicts:
``{"type": "text", "content": ...}``, ``{"type": "image", "content": ...}``, also ``image_path`` and ``image_bytes``;
the key ``text`` or ``image`` may replace ``content``. An input becomes one string, with an image as its tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.images import ImageFile
from jasper_jax.vision.vision_model import IMAGE_TOKENS, VisionModel

TYPES = ("text", "image", "image_path", "image_bytes")


class Mixture(NamedTuple):
    """An input as one string, and its images in order, as given."""

    text: str
    images: tuple[Any, ...] = ()


def is_image(item: Any) -> bool:
    """Whether ``item`` is an image: PIL's, a path, or a file's bytes."""
    return isinstance(item, (os.PathLike, bytes, bytearray, memoryview)) or hasattr(item, "tobitmap")


def input_list(inputs: Any) -> list[Any]:
    """The inputs of one call. UserError: no sequence of them."""
    if not isinstance(inputs, Iterable) or isinstance(inputs, (Mapping, Set)) or getattr(inputs, "ndim", 1) != 1:
        raise UserError(f"texts is a {type(inputs).__name__}; expected a text, or a list or another sequence of texts")
    return list(inputs)


def read_mixtures(
    inputs: Sequence[Any], prompts: Sequence[str], vision_model: VisionModel | None, image_root: Path | None
) -> list[Mixture]:
    """:func:`read_mixture` of each input, with its prompt."""
    return [
        read_mixture(one, vision_model, f"texts[{i}]", lambda prompt=prompt: prompt, image_root)
        for i, (prompt, one) in enumerate(zip(prompts, inputs, strict=True))
    ]


def read_mixture(
    item: Any,
    vision_model: VisionModel | None,
    where: str,
    prompt: Callable[[], str],
    image_root: Path | None = None,
) -> Mixture:
    """An input of ``encode``; ``prompt`` precedes it if it begins with text. UserError: an unknown type, an image
    for a text model, a path without ``image_root``, an image token in a text."""
    items = item if isinstance(item, (list, tuple)) else [item]
    if not items:
        raise UserError(f"{where}: an empty list; give at least one text or image")
    parts: list[str] = []
    images: list[Any] = []
    for place, part in enumerate(items):
        here = where if len(items) == 1 else f"{where}[{place}]"
        kind, content = _item(part, here)
        if kind == "text":
            if len(items) > 1 and (token := next((t for t in IMAGE_TOKENS if t in content), None)):
                raise UserError(f"{here}: the text has the reserved token {token}; remove it")
            parts.append(content)
            continue
        if vision_model is None:
            raise UserError(f"{here}: is an image, but this is a text model; export one with student.vision")
        parts.append(vision_model.written)
        images.append(_file(content, image_root, here) if isinstance(content, os.PathLike) else content)
    begins = prompt() if parts[0] != (vision_model.written if vision_model and images else None) else ""
    return Mixture(begins + "".join(parts), tuple(images))


def _file(path: os.PathLike[str], image_root: Path | None, where: str) -> ImageFile:
    if image_root is None:
        raise UserError(
            f"{where}: is the path of an image; paths are opened only in a folder that you name: Embedder.load(...,"
            " image_root=FOLDER); or give the bytes of the file, or a PIL image"
        )
    return ImageFile(image_root, Path(path))


def _item(item: Any, where: str) -> tuple[str, Any]:
    """(``text`` or ``image``, content)."""
    if isinstance(item, str):
        return "text", item
    if is_image(item):
        return "image", item
    if not isinstance(item, Mapping):
        raise UserError(
            f"{where} is a {type(item).__name__}; expected a string, an image (PIL, Path or bytes), or a list of dicts"
            " with type and content"
        )
    kind = item.get("type")
    if kind not in TYPES:
        raise UserError(f"{where}: type is {kind!r}; expected one of {', '.join(TYPES)}")
    keys = [key for key in ("content", kind, "image") if key in item and (kind != "text" or key != "image")]
    if not keys:
        raise UserError(f"{where}: a {kind} without content; give it as 'content'")
    content = item[keys[0]]
    if kind == "text":
        if not isinstance(content, str):
            raise UserError(f"{where}: the content of a text is a {type(content).__name__}; expected a string")
        return "text", content
    if isinstance(content, str):
        content = Path(content)
    if not is_image(content):
        raise UserError(
            f"{where}: the content of an {kind} is a {type(content).__name__}; expected PIL, a path or bytes"
        )
    return "image", content


def images_of(
    inputs: Sequence[Mixture], ids: Sequence[Sequence[int] | np.ndarray], vision_model: VisionModel | None, limit: int
) -> list[list[tuple[Any, str]]]:
    """The images of each input, each with the input's name for messages; [] if no input has an image.

    ``ids``: the tokens of each input, at most ``limit``. UserError: an input was truncated within an image.
    """
    if not any(mixture.images for mixture in inputs):
        return []
    assert vision_model is not None
    for number, (mixture, tokens) in enumerate(zip(inputs, ids, strict=True)):
        if mixture.images:
            _refuse_truncated(list(tokens), mixture, vision_model, f"texts[{number}]", limit)
    return [[(image, f"texts[{number}]") for image in mixture.images] for number, mixture in enumerate(inputs)]


def _refuse_truncated(ids: Sequence[int], mixture: Mixture, vision_model: VisionModel, where: str, limit: int) -> None:
    """UserError: the input was truncated within an image."""
    counts = [sum(1 for i in ids if i == token) for token in (vision_model.image_id, vision_model.end_id)]
    if counts != [vision_model.tokens * len(mixture.images), len(mixture.images)]:
        most = max(0, (limit - 2) // (vision_model.tokens + 2))
        raise UserError(
            f"{where}: {len(mixture.images)} images of {vision_model.tokens + 2} tokens do not fit the model's"
            f" {limit} tokens; give at most {most}, or less text before them"
        )
