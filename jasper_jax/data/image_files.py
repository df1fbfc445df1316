"""Pairs out of files: a folder of images with a file of captions, and WebDataset tars, read as streams."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from jasper_jax.data.image_log import NO_CAPTION, NO_IMAGE, NOT_TEXT, UNUSABLE, Example, SourceLog
from jasper_jax.data.libraries import require
from jasper_jax.data.source_files import matching
from jasper_jax.data.sources import Row, jsonl_rows, parquet_rows, strings
from jasper_jax.recipe.config_sources import ImageSource
from jasper_jax.runtime.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What counts as an image where a folder is looked through for those that no caption names."""
WEBDATASET_IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_FILES = (".jsonl", ".jsonl.gz", ".parquet")


def columns(source: ImageSource) -> list[str]:
    """The columns of image, caption and, where one is named, group."""
    return [source.image or "image", source.caption or "caption", *([source.group] if source.group else [])]


def group_of(source: ImageSource, row: Row) -> str:
    """The row's group; empty where the source has none."""
    value = row.values[source.group] if source.group else None
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# -------------------------------------------------------------------------------------------- folder


def captions_file(source: ImageSource, key: str) -> Path:
    """The file of captions. UserError: it, or the folder, is not there, or it is of a kind that is not read."""
    folder, name = Path(str(source.folder)), str(source.captions)
    if not folder.is_dir():
        raise UserError(f"{key}.folder: no folder {folder} (relative paths start at {Path.cwd()})")
    path = _inside(folder.resolve(), folder, name, f"{key}.captions")
    if not path.is_file():
        raise UserError(f"{key}.captions: no file {name!r} in {folder}")
    if not name.endswith(CAPTION_FILES):
        raise UserError(f"{key}.captions: {name!r} is of no kind that is read; {', '.join(CAPTION_FILES)} are")
    return path


def caption_rows(source: ImageSource, path: Path) -> Iterator[Row]:
    wanted = columns(source)
    for row in parquet_rows(path, wanted) if path.suffix == ".parquet" else jsonl_rows(path):
        require(wanted, list(row.values), row.where)
        yield row


def _inside(real: Path, folder: Path, name: str, where: str) -> Path:
    """``folder / name``. UserError: that is not in the folder, whose resolved path is ``real``."""
    try:
        inside = not os.path.isabs(name) and (folder / name).resolve().is_relative_to(real)
    except (OSError, ValueError, RuntimeError):  # too long, a null character, links in a circle
        inside = False
    if not inside:
        raise UserError(f"{where}: {name!r} leads out of the folder {folder}; paths are relative to it and stay in it")
    return folder / name


def folder_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    """The pairs that the captions file names; images of the folder that it does not name are counted."""
    folder, path = Path(str(source.folder)), captions_file(source, log.key)
    real = folder.resolve()
    image, caption, *_ = columns(source)
    named: set[Path] = set()
    log.note(path)
    for row in caption_rows(source, path):
        name = row.values[image]
        if name is None or name == "":
            log.skip(NO_IMAGE, row.where)
            continue
        if not isinstance(name, str):
            raise UserError(f"{row.where}: column {image!r} holds {type(name).__name__}, a path in {folder} is needed")
        file = _inside(real, folder, name, row.where)
        if not file.is_file():
            log.skip(NO_IMAGE, f"{name} of {row.where}")
            continue
        named.add(file.resolve())
        try:
            log.note(file)
            data = file.read_bytes()
        except OSError as e:
            log.skip(UNUSABLE, f"{name}: {e.strerror}")
            continue
        for text in strings(row.values[caption], caption, row.where):
            yield Example(data, text, Path(name).as_posix(), group_of(source, row))
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            found = Path(place, name)
            if found.suffix.lower() in IMAGE_SUFFIXES and found.resolve() not in named:
                log.skip(NO_CAPTION, found.relative_to(folder).as_posix())


# ---------------------------------------------------------------------------------------- WebDataset


def webdataset_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    """The pairs of all tars, in the order of their names; a pair's name is that of its tar and its stem."""
    images = (source.image.lower().lstrip("."),) if source.image else WEBDATASET_IMAGES
    caption = (source.caption or "txt").lower().lstrip(".")
    other: Counter[str] = Counter()
    found = False
    for path in matching(str(source.webdataset), f"{log.key}.webdataset"):
        log.note(path)
        for stem, data, text in _members(path, images, caption, other):
            found, name = True, f"{path.name}/{stem}"
            if data is None or text is None:
                log.skip(NO_IMAGE if data is None else NO_CAPTION, name)
                continue
            try:
                yield Example(data, text.decode(), name, "")
            except UnicodeDecodeError:
                log.skip(NOT_TEXT, name)
    if not found:
        there = ", ".join(f"{n:,} .{extension}" for extension, n in other.most_common(8)) or "nothing else"
        raise UserError(
            f"{log.key}: {log.label} holds no members .{' .'.join(images)} or .{caption}, but {there}; set image and "
            f"caption to the extensions"
        )


def _members(
    path: Path, images: tuple[str, ...], caption: str, other: Counter[str]
) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Stem, image and caption of each pair, as soon as both were met; at the end those that lack one of them.

    A stem ends at the first point of the member's name, its extension is what follows.
    """
    waiting: dict[str, dict[bool, bytes]] = {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                extension = extension.lower()
                if not member.isfile() or not stem:
                    continue
                if extension != caption and extension not in images:
                    other[extension] += 1
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                stem = f"{folder}/{stem}" if folder else stem
                parts = waiting.setdefault(stem, {})
                parts[extension == caption] = stream.read()
                if len(parts) == 2:
                    yield stem, parts[False], parts[True]
                    del waiting[stem]
    except (tarfile.TarError, EOFError, OSError) as e:
        raise UserError(f"{path}: damaged, or no tar file ({e})") from None
    for stem, parts in waiting.items():
        yield stem, parts.get(False), parts.get(True)
