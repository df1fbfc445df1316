"""Where image-caption pairs come from: every kind of source becomes one stream of examples, never held in memory.

An example that cannot be used (no caption, an image that does not decode) is left out, counted and named; more than a
share of them ends the work, as does what the settings get wrong.
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
from jasper_jax.data.libraries import datasets_library, hf_splits, require, tfds_splits
from jasper_jax.data.source_files import matching
from jasper_jax.data.sources import Row, strings
from jasper_jax.recipe.config_sources import Images, ImageSource
from jasper_jax.runtime.errors import UserError, nearest

__all__ = ["Example", "SourceLog", "check_image_sources", "read_image_source"]


def source_key(number: int) -> str:
    return f"images.sources[{number}]"


# ----------------------------------------------------------------------------------------- data sets


def _asked(source: ImageSource) -> list[str]:
    return [source.split] if source.split is not None else []


def _row_pairs(source: ImageSource, row: Row, name: str, data: bytes, log: SourceLog) -> Iterator[Example]:
    caption = source.caption or "caption"
    try:
        texts = strings(row.values[caption], caption, row.where)
    except UserError:
        if not isinstance(row.values[caption], bytes):
            raise  # the column is no text at all
        log.skip(NOT_TEXT, row.where)
        return
    # named after its content where the source names it not: its place in the data set may be another tomorrow
    name = name or hashlib.sha256(data).hexdigest()[:16]
    for text in texts:
        yield Example(data, text, name, group_of(source, row))


def _tfds_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    wanted = columns(source)
    image = wanted[0]
    where, data = tfds_splits(str(source.tfds), None, _asked(source), wanted, log.key, encoded=[image])
    for split, rows in data.items():
        for number in range(len(rows)):
            row = Row(f"{where}, split {split}, row {number}", rows[number])
            value = row.values[image]
            if not isinstance(value, bytes):
                raise UserError(
                    f"{row.where}: column {image!r} holds {type(value).__name__}, not an encoded image; an Image "
                    f"feature or the bytes of one are needed"
                )
            yield from _row_pairs(source, row, "", value, log)


def _hf_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    wanted = columns(source)
    image = wanted[0]
    where, data = hf_splits(str(source.hf), source.config, _asked(source), log.key)
    datasets = datasets_library(log.key)
    for split, rows in data.items():
        if rows.features is not None:
            require(wanted, list(rows.features), f"{log.key}: {where}")
            if isinstance(rows.features[image], datasets.Image):
                rows = rows.cast_column(image, datasets.Image(decode=False))
        for number, values in enumerate(rows):
            row = Row(f"{where}, split {split}, row {number}", values)
            require(wanted, list(values), row.where)
            found = _encoded(values[image], image, row.where)
            if isinstance(found, str):
                log.skip(UNUSABLE, found)
            else:
                yield from _row_pairs(source, row, found[1], found[0], log)


def _encoded(value: Any, column: str, where: str) -> tuple[bytes, str] | str:
    """An image's bytes and its file's name (else empty), or why there are none."""
    if isinstance(value, bytes):
        return value, ""
    if value is None:
        return f"{where}: no image"
    if not isinstance(value, dict) or not {"bytes", "path"} <= set(value):
        raise UserError(
            f"{where}: column {column!r} holds {type(value).__name__}, not an image; an Image column or the bytes of "
            f"one are needed"
        )
    path = value["path"] or ""
    if value["bytes"] is not None:
        return value["bytes"], Path(path).name
    try:
        return Path(path).read_bytes(), Path(path).name
    except OSError as e:
        return f"{where}: {path or 'neither bytes nor path'} ({e.strerror})"


# -------------------------------------------------------------------------------------------- assets


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

# ------------------------------------------------------------------------------------------ examples


def read_image_source(source: ImageSource, images: Images, log: SourceLog) -> Iterator[Example]:
    """The usable examples of one source, at most its ``limit``; ``log`` counts them and what was left out.

    An example without a group of its own is in that of its image, so that all captions of an image stay together.

    Raises:
      UserError: the source cannot be read, more than ``images.skip_share`` of it is unusable, or it is empty.
    """
    from jasper_jax.vision.images import open_image

    reader = next(r for k, r in _READERS.items() if getattr(source, k) is not None)
    checked, usable = None, False
    for example in reader(source, log):
        name, group = _unicode(example.name), _unicode(example.group)
        if checked is not example.image:  # several captions of an image come one after the other
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
    """``name`` without halves of surrogate pairs, which stand for bytes of file names that are not UTF-8."""
    return name.encode(errors="replace").decode()


def check_image_sources(images: Images, *, libraries: bool = True) -> None:
    """Check everything that can be known before any work: folders, files, columns, names.

    ``libraries``: also those that reading the images takes; a recipe can be described without them.

    Raises:
      UserError: the first thing that would stop the run.
    """
    if libraries:
        _check_libraries(images)
    for number, source in enumerate(images.sources):
        key = source_key(number)
        if source.folder is not None:
            next(caption_rows(source, captions_file(source, key)), None)  # its columns
        elif source.webdataset is not None:
            matching(source.webdataset, f"{key}.webdataset")
        elif source.asset is not None:
            _check_asset(source.asset, key)


def _check_libraries(images: Images) -> None:
    from jasper_jax.assets.openmoji import renderer

    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UserError("images: pictures are read with Pillow: pip install 'jasper-jax[vision]'") from None
    for number, source in enumerate(images.sources):
        if source.hf is not None:
            datasets_library(source_key(number))
        elif source.asset is not None:
            renderer(source_key(number))


def _check_asset(name: str, key: str) -> None:
    known = [asset.name for asset in CATALOGUE.values() if asset.kind == "images"]
    if name not in known:
        what = f"asset {name!r} is no collection of images" if name in CATALOGUE else f"there is no asset {name!r}"
        raise UserError(f"{key}.asset: {what}{nearest(name, known)}; the collections are {', '.join(known)}")
