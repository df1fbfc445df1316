"""Where image-caption pairs come from: every kind of source becomes one stream of examples, never held in memory.

An unusable example (no caption, an image that does not decode) is skipped, counted and named. Too many of them are an
error, as are wrong settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.data.image_files import (
    caption_rows,
    captions_file,
    columns,
    folder_pairs,
    group_of,
    webdataset_pairs,
)
from jasper_jax.data.image_log import EMPTY, NOT_TEXT, UNUSABLE, Example, SourceLog
from jasper_jax.data.libraries import Row, datasets_library, hf_rows, require, tfds_rows
from jasper_jax.data.rows import strings
from jasper_jax.data.source_files import kind_of, matching
from jasper_jax.recipe.config_sources import Images, ImageSource
from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.inside import inside
from jasper_jax.runtime.paths import user_path
from jasper_jax.vision.images import MAX_BYTES


def _splits(source: ImageSource) -> list[str]:
    return [source.split] if source.split is not None else []


def _row_pairs(source: ImageSource, row: Row, name: str, data: bytes, log: SourceLog) -> Iterator[Example]:
    caption = source.caption or "caption"
    try:
        texts = strings(row.values[caption], caption, row.where)
    except UserError:
        if not isinstance(row.values[caption], bytes):
            raise  # the whole column is not text
        log.skip(NOT_TEXT, row.where)
        return
    # row numbers are not stable, so hash the content
    name = name or hashlib.sha256(data).hexdigest()[:16]
    for text in texts:
        yield Example(data, text, name, group_of(source, row))


def _tfds_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    image, *_ = names = columns(source)
    for row in tfds_rows(str(source.tfds), None, _splits(source), names, log.key, image):
        value = row.values[image]
        if not isinstance(value, bytes):
            raise UserError(
                f"{row.where}: column {image!r} holds {type(value).__name__}; expected an Image feature or the bytes "
                f"of an encoded image"
            )
        yield from _row_pairs(source, row, "", value, log)


def _hf_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    image, *_ = names = columns(source)
    folder = user_path(str(source.hf), f"{log.key}.hf")
    for row in hf_rows(str(source.hf), source.config, _splits(source), log.key, image):
        require(names, list(row.values), row.where)
        encoded = _encoded(row.values[image], image, row.where, folder)
        if isinstance(encoded, str):
            log.skip(UNUSABLE, encoded)
        else:
            yield from _row_pairs(source, row, encoded[1], encoded[0], log)


def _encoded(value: Any, column: str, where: str, folder: Path) -> tuple[bytes, str] | str:
    """An image's bytes and its file name (may be empty), or why there are no bytes.

    A data set may have been made by a stranger: the paths in its rows are opened in its own ``folder`` only.
    """
    if isinstance(value, bytes):
        return value, ""
    if value is None:
        return f"{where}: no image"
    if not isinstance(value, dict) or not {"bytes", "path"} <= set(value):
        raise UserError(
            f"{where}: column {column!r} holds {type(value).__name__}, not an image; expected an Image column or the "
            f"bytes of an encoded image"
        )
    path = value["path"] or ""
    if value["bytes"] is not None:
        return value["bytes"], Path(path).name
    if not path:
        return f"{where}: neither bytes nor path"
    file = inside(folder, path) if folder.is_dir() else None
    if file is None:
        return (
            f"{where}: {path} is not in the data set's folder; store the images' bytes in the data set, or copy both"
            " into one folder"
        )
    try:
        return read_regular(file, MAX_BYTES), file.name
    except OSError as e:
        return f"{where}: {path} ({e.strerror})"


def _asset_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    from jasper_jax.assets.openmoji import drawings, rendered

    for drawing in drawings():
        named = drawing.named
        if named.toned and source.tones is False:
            continue
        group = named.alike if source.group == "tone" else named.group
        yield Example(rendered(drawing.svg, log.key), named.caption, drawing.stem, group, not named.toned)


_READERS = {
    "folder": folder_pairs,
    "webdataset": webdataset_pairs,
    "tfds": _tfds_pairs,
    "hf": _hf_pairs,
    "asset": _asset_pairs,
}


def read_image_source(source: ImageSource, images: Images, log: SourceLog) -> Iterator[Example]:
    """The usable examples of one source, at most its ``limit``; ``log`` counts them and the skipped ones.

    An example without a group gets the group of its image, so that all captions of an image stay together.

    Raises:
      UserError: the source cannot be read, is empty, or more than ``images.skip_share`` of it is unusable.
    """
    from jasper_jax.vision.images import open_image

    checked, usable = None, False
    for example in _READERS[kind_of(source)](source, log):
        name, group = _unicode(example.name), _unicode(example.group)
        if checked is not example.image:  # the captions of an image are consecutive
            checked, usable = example.image, True
            try:
                open_image(example.image, name, images.max_pixels)
            except UserError as e:
                usable = False
                log.skip(UNUSABLE, str(e))
        if not usable:
            continue
        caption = example.caption.strip()
        if not caption:
            log.skip(EMPTY, name)
            continue
        log.given += 1
        group = group or f"image {hashlib.sha256(example.image).hexdigest()[:32]}"
        yield Example(example.image, caption, name, group, example.eligible)
        if log.given == source.limit:
            break
    log.refuse_many(images.skip_share)


def _unicode(name: str) -> str:
    """``name`` without lone surrogates, which stand for bytes of file names that are not UTF-8."""
    return name.encode(errors="replace").decode()


def check_image_sources(images: Images, *, libraries: bool = True) -> None:
    """Check before any work that folders, files, columns and assets exist.

    ``libraries``: check those that reading the images takes, too; a recipe can be described without them.

    Raises:
      UserError: the first problem.
    """
    if libraries:
        try:
            import PIL  # noqa: F401
        except ImportError:
            raise UserError("images: reading images needs Pillow: pip install 'jasper-jax[vision]'") from None
    for number, source in enumerate(images.sources):
        key = f"images.sources[{number}]"
        if source.folder is not None:
            next(caption_rows(source, captions_file(source, key)), None)  # its columns
        elif source.webdataset is not None:
            matching(source.webdataset, f"{key}.webdataset")
        elif source.hf is not None and libraries:
            datasets_library(key)
        elif source.asset is not None:
            _check_asset(source.asset, key, libraries)


def _check_asset(name: str, key: str, library: bool) -> None:
    from jasper_jax.assets.openmoji import renderer

    names = [asset.name for asset in CATALOGUE.values() if asset.kind == "images"]
    if name not in names:
        problem = f"asset {name!r} is not an image collection" if name in CATALOGUE else f"there is no asset {name!r}"
        raise UserError(f"{key}.asset: {problem}{nearest(name, names)}; the image collections are {', '.join(names)}")
    if library:
        renderer(key)
