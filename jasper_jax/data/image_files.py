"""Pairs from files: a folder of images with a captions file, and WebDataset tars, read as streams."""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from jasper_jax.data.image_log import NO_CAPTION, NO_IMAGE, NOT_TEXT, UNUSABLE, Example, SourceLog
from jasper_jax.data.libraries import Row, require
from jasper_jax.data.rows import jsonl_rows, parquet_rows, strings
from jasper_jax.data.source_files import matching
from jasper_jax.recipe.config_sources import ImageSource
from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import inside
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.text_files import LONGEST, content_suffix
from jasper_jax.runtime.unpacking import DAMAGED, unpacked
from jasper_jax.vision.images import MAX_BYTES

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Files of a folder that are counted as images without a caption if the captions file does not name them."""
WEBDATASET_IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTION_FILES = (".jsonl", ".parquet")
WAITING = 1 << 29
"""Bytes of members whose image or caption has not been read yet."""
_LONG_NAMES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_LONGEST_NAME = 1 << 20
"""Bytes of all headers of ``_LONG_NAMES`` before a member."""
_MOST_CHAINED = 8
"""Such headers; there are three kinds."""


def columns(source: ImageSource) -> list[str]:
    """The columns of image, caption and, if the source has one, group."""
    return [source.image or "image", source.caption or "caption", *([source.group] if source.group else [])]


def group_of(source: ImageSource, row: Row) -> str:
    """The row's group; empty if the source has no groups."""
    value = row.values[source.group] if source.group else None
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def captions_file(source: ImageSource, key: str) -> Path:
    """The captions file. UserError: it or the folder does not exist, or its format is not supported."""
    folder, name = user_path(str(source.folder), f"{key}.folder"), str(source.captions)
    if not folder.is_dir():
        raise UserError(f"{key}.folder: no folder {folder} (relative paths start at {Path.cwd()})")
    path = _inside(folder, name, f"{key}.captions")
    if not path.is_file():
        raise UserError(f"{key}.captions: no file {name!r} in {folder}")
    if content_suffix(name) not in CAPTION_FILES:
        raise UserError(f"{key}.captions: {name!r} has an unsupported format; expected {', '.join(CAPTION_FILES)}")
    return path


def caption_rows(source: ImageSource, path: Path) -> Iterator[Row]:
    names = columns(source)
    for row in parquet_rows(path, names) if path.suffix == ".parquet" else jsonl_rows(path):
        require(names, list(row.values), row.where)
        yield row


def _inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``. UserError: it is outside the folder."""
    if os.path.isabs(name) or inside(folder, name) is None:
        raise UserError(
            f"{where}: {name[:80]!r} leads out of the folder {folder}; give a path inside it, relative to it; if it is"
            " a link, put the files themselves there (cp -rL)"
        )
    return folder / name


def folder_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    """The pairs that the captions file names; counts the images of the folder that it does not name."""
    folder, path = user_path(str(source.folder), f"{log.key}.folder"), captions_file(source, log.key)
    image, caption, *_ = columns(source)
    named: set[Path] = set()
    log.note(path)
    for row in caption_rows(source, path):
        name = row.values[image]
        if name is None or name == "":
            log.skip(NO_IMAGE, row.where)
            continue
        if not isinstance(name, str):
            raise UserError(f"{row.where}: column {image!r} holds {type(name).__name__}; expected a path in {folder}")
        file = _inside(folder, name, row.where)
        if not file.is_file():
            log.skip(NO_IMAGE, f"{name} of {row.where}")
            continue
        named.add(file.resolve())
        try:
            log.note(file)
            data = read_regular(file, MAX_BYTES)
        except OSError as e:
            log.skip(UNUSABLE, f"{name}: {e.strerror}")
            continue
        for text in strings(row.values[caption], caption, row.where):
            yield Example(data, text, Path(name).as_posix(), group_of(source, row))
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            file = Path(parent, name)
            if file.suffix.lower() in IMAGE_SUFFIXES and file.resolve() not in named:
                log.skip(NO_CAPTION, file.relative_to(folder).as_posix())


def webdataset_pairs(source: ImageSource, log: SourceLog) -> Iterator[Example]:
    """The pairs of all tars, in the order of the tars' names; a pair is named ``tar/stem``."""
    images = (source.image.lower().lstrip("."),) if source.image else WEBDATASET_IMAGES
    caption = (source.caption or "txt").lower().lstrip(".")
    other: Counter[str] = Counter()
    empty = True
    for path in matching(str(source.webdataset), f"{log.key}.webdataset"):
        log.note(path)
        for stem, data, text in _members(path, images, caption, other):
            empty, name = False, f"{path.name}/{stem}"
            if data is None or text is None:
                log.skip(NO_IMAGE if data is None else NO_CAPTION, name)
                continue
            if len(text) > LONGEST:
                log.skip(NOT_TEXT, f"{name}: more than {LONGEST:,} bytes")
                continue
            try:
                yield Example(data, text.decode(), name, "")
            except UnicodeDecodeError:
                log.skip(NOT_TEXT, name)
    if empty:
        there = ", ".join(f"{n:,} .{extension}" for extension, n in other.most_common(8)) or "nothing else"
        raise UserError(
            f"{log.key}: {log.label} holds no members .{' .'.join(images)} or .{caption}, but {there}; set image and "
            f"caption to the extensions of its members"
        )


def _size(stem: str, pair: dict[bool, bytes]) -> int:
    """Bytes that members take while they wait, with Python's own."""
    return sum(len(content) + len(stem) + 200 for content in pair.values())


def _header() -> type[tarfile.TarInfo]:
    """The headers of one tar; ReadError for those that would fill the memory. ``tarfile`` reads names and attributes
    whole, follows one header of them after another, and gives each member a copy of all attributes before it."""

    class Header(tarfile.TarInfo):
        chained = held = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            member = super().frombuf(buf, encoding, errors)
            if member.type not in _LONG_NAMES:
                cls.chained = cls.held = 0
                if member.type == tarfile.GNUTYPE_SPARSE:
                    cls._refuse_holes()
                return member
            cls.chained, cls.held = cls.chained + 1, cls.held + member.size
            if cls.chained > _MOST_CHAINED:
                raise tarfile.ReadError(f"more than {_MOST_CHAINED} headers for one member")
            if cls.held > _LONGEST_NAME:
                raise tarfile.ReadError(f"a header of {member.size:,} bytes")
            return member

        @staticmethod
        def _refuse_holes(*_: object) -> None:
            """``tarfile`` calls it for the three forms of sparse files that are said in attributes."""
            raise tarfile.ReadError("a file with holes, which can be far larger than the tar")

        _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_holes

    return Header


def _members(
    path: Path, images: tuple[str, ...], caption: str, other: Counter[str]
) -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """Stem, image and caption of each pair, as soon as both are read; at the end, those that lack one.

    The first dot of a member's name separates stem and extension. Of a member that is too large a byte more is read
    than allowed, which shows it to the reader of its content.
    """
    waiting: dict[str, dict[bool, bytes]] = {}
    held = 0
    try:
        with path.open("rb") as file, tarfile.open(None, "r|", unpacked(file, str(path))[0], tarinfo=_header()) as tar:
            while (member := tar.next()) is not None:
                setattr(tar, "members", [])  # noqa: B010  (it would keep all, with their attributes)
                tar.pax_headers = {}
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                extension = extension.lower()
                if not member.isfile() or not stem:
                    continue
                if extension != caption and extension not in images:
                    other[extension[:40] if len(other) < 1000 else "..."] += 1
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                stem = f"{folder}/{stem}" if folder else stem
                pair = waiting.setdefault(stem, {})
                content = stream.read((LONGEST if extension == caption else MAX_BYTES) + 1)
                held -= _size(stem, pair)
                pair[extension == caption] = content
                if len(pair) == 2:
                    yield stem, pair[False], pair[True]
                    del waiting[stem]
                else:
                    held += _size(stem, pair)
                if held > WAITING:
                    raise UserError(
                        f"{path}: {len(waiting):,} members before {member.name!r} wait for their image or caption, more"
                        f" than {WAITING:,} bytes; put the two of each pair next to each other"
                    )
    except (tarfile.TarError, ValueError, *DAMAGED) as e:  # ValueError: an attribute is no number
        raise UserError(f"{path}: damaged, or not a tar file ({e})") from None
    for stem, pair in waiting.items():
        yield stem, pair.get(False), pair.get(True)
