"""What can be encoded: a text, an image, or a list in which texts and images follow each other.

A text is a ``str``; an image is a PIL image, a ``Path``, or the ``bytes`` of a file. In a list stand dicts: ``{"type":
"text", "content": ...}``, ``{"type": "image", "content": ...}``, also ``image_path`` and ``image_bytes``; ``text`` or
``image`` may stand for ``content``. All of an input becomes one string, in which an image is written as its tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.vision_model import IMAGE_TOKENS, VisionModel

TYPES = ("text", "image", "image_path", "image_bytes")


class Mixture(NamedTuple):
    """An input as one string, and the images that stand in it, in order, as they were given."""

    text: str
    images: tuple[Any, ...] = ()


def is_image(item: Any) -> bool:
    """Whether ``item`` is an image: PIL's, a path, or a file's bytes."""
    return isinstance(item, (os.PathLike, bytes, bytearray, memoryview)) or hasattr(item, "tobitmap")


def read_mixture(item: Any, vision_model: VisionModel | None, where: str, prompt: Callable[[], str]) -> Mixture:
    """An input of ``encode``, its ``prompt`` before it where it begins with text.

    Raises:
      UserError: an item of unknown type; an image for a model of texts alone; a text that holds an image token.
    """
    items = item if isinstance(item, (list, tuple)) else [item]
    if not items:
        raise UserError(f"{where}: an empty list; give at least one text or image")
    parts: list[str] = []
    images: list[Any] = []
    for place, one in enumerate(items):
        here = where if len(items) == 1 else f"{where}[{place}]"
        kind, content = _item(one, here)
        if kind == "text":
            if len(items) > 1 and (token := next((t for t in IMAGE_TOKENS if t in content), None)):
                raise UserError(f"{here}: the text holds {token}, which only an image may; take it out")
            parts.append(content)
            continue
        if vision_model is None:
            raise UserError(f"{here}: is an image, and this model takes texts only; export one with student.vision")
        parts.append(vision_model.written)
        images.append(content)
    begins = prompt() if parts[0] != (vision_model.written if vision_model and images else None) else ""
    return Mixture(begins + "".join(parts), tuple(images))


def _item(item: Any, where: str) -> tuple[str, Any]:
    """(``text`` or ``image``, content)."""
    if isinstance(item, str):
        return "text", item
    if is_image(item):
        return "image", item
    if not isinstance(item, Mapping):
        raise UserError(
            f"{where} is a {type(item).__name__}; a string, an image (PIL, Path or bytes), or a list of dicts with a"
            f" type and a content is needed"
        )
    kind = item.get("type")
    if kind not in TYPES:
        raise UserError(f"{where}: type is {kind!r}; one of {', '.join(TYPES)} is needed")
    keys = [key for key in ("content", kind, "image") if key in item and (kind != "text" or key != "image")]
    if not keys:
        raise UserError(f"{where}: a {kind} without content; give it as 'content'")
    content = item[keys[0]]
    if kind == "text":
        if not isinstance(content, str):
            raise UserError(f"{where}: the content of a text is a {type(content).__name__}; a string is needed")
        return "text", content
    if isinstance(content, str):
        content = Path(content)
    if not is_image(content):
        raise UserError(
            f"{where}: the content of an {kind} is a {type(content).__name__}; PIL, a path or bytes is needed"
        )
    return "image", content


def check_images(ids: Sequence[int], mixture: Mixture, vision_model: VisionModel, where: str, limit: int) -> None:
    """UserError when not every token of every image came through the tokenizer: the input was cut within one."""
    found = [sum(1 for token in ids if token == one) for one in (vision_model.image_id, vision_model.end_id)]
    if found != [vision_model.tokens * len(mixture.images), len(mixture.images)]:
        most = max(0, (limit - 2) // (vision_model.tokens + 2))
        raise UserError(
            f"{where}: {len(mixture.images)} images of {vision_model.tokens + 2} tokens do not fit what the model"
            f" reads, {limit} tokens; give at most {most}, or less text before them"
        )
