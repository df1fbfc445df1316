"""The local files a store was built from: recorded in its manifest, so that a later change is detected.

A file is unchanged if its size and modification time are; if only the time differs (a copy, a touch), its sha256
decides. So a command costs one ``stat`` a file, and rarely reads the file again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jasper_jax.recipe.config_sources import (
    FILE_KINDS,
    IMAGE_SOURCE_KINDS,
    PAIR_FILE_KINDS,
    PAIR_SOURCE_KINDS,
    SOURCE_KINDS,
    ImageSource,
    PairSource,
    TextSource,
)
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file
from jasper_jax.runtime.paths import matching_files, user_path

_UNDECODED = re.compile("[\ud800-\udfff]")
"""What stands in Python for the bytes of a name that are not UTF-8."""
_KINDS = SOURCE_KINDS + PAIR_SOURCE_KINDS + IMAGE_SOURCE_KINDS


def kind_of(source: TextSource | PairSource | ImageSource) -> str:
    """The key that says what kind of source it is, e.g. ``jsonl``."""
    return next(kind for kind in _KINDS if getattr(source, kind, None) is not None)


def label(source: TextSource | PairSource | ImageSource) -> str:
    """A source's short name in counts and rows, e.g. ``jsonl:notes/*.jsonl``."""
    return f"{kind_of(source)}:{getattr(source, kind_of(source))}"


class SourceFile(BaseModel):
    """A source file as it was when read; ``file`` is its path, from the recipe's path or pattern."""

    model_config = ConfigDict(strict=True)

    file: str
    bytes: int
    mtime_ns: int
    sha256: str = ""


def matching(pattern: str, key: str = "texts.sources") -> list[Path]:
    """The files that the path or glob at ``key`` of the recipe names, sorted.

    Raises:
      UserError: none; or a name is not UTF-8, which no record of files can have.
    """
    paths = matching_files(pattern, key)
    for path in paths:
        _refuse_undecoded(path, key)
    if not paths:
        folder = user_path(pattern, key)
        if os.path.isdir(folder):
            raise UserError(f"{key}: {pattern!r} is a folder; name its files, e.g. {folder}/*{_example(folder)}")
        raise UserError(f"{key}: no file matches {pattern!r} (relative paths start at {Path.cwd()})")
    return paths


def _example(folder: Path) -> str:
    return next((path.suffix for path in sorted(folder.iterdir()) if path.is_file() and path.suffix), ".jsonl")


def pattern_of(source: TextSource | PairSource) -> str | None:
    """The path or glob of a source of local files; None for another kind."""
    return getattr(source, kind_of(source)) if kind_of(source) in FILE_KINDS + PAIR_FILE_KINDS else None


def patterns_of(sources: Sequence[TextSource | PairSource]) -> list[str]:
    return [pattern for source in sources if (pattern := pattern_of(source)) is not None]


def local_files(patterns: Sequence[str]) -> list[SourceFile]:
    """Every local file that matches, without sha256."""
    return [as_it_is(path) for path in sorted({path for pattern in patterns for path in matching(pattern)})]


def hashed(files: Sequence[SourceFile]) -> list[SourceFile]:
    """``files`` with their sha256, after they have been read. UserError: one has changed meanwhile."""
    for file in files:
        path = Path(file.file)
        if not os.path.isfile(path) or as_it_is(path) != file:
            raise UserError(f"{path}: changed while it was read; run again when nothing writes to it")
    return [file.model_copy(update={"sha256": sha256_file(Path(file.file))}) for file in files]


def changed_files(recorded: Sequence[SourceFile], patterns: Sequence[str]) -> list[str]:
    """One clause for each source file that has changed, or matches ``patterns`` and is not recorded.

    A deleted file is no change: the store has its content. A store of an earlier version records no files, and none
    are compared.
    """
    changes = []
    for file in recorded:
        path = Path(file.file)
        if not os.path.isfile(path):
            continue
        now = as_it_is(path)
        if now.bytes != file.bytes:
            changes.append(f"{path}: has changed ({file.bytes:,} bytes then, {now.bytes:,} now)")
        elif now.mtime_ns != file.mtime_ns and sha256_file(path) != file.sha256:
            changes.append(f"{path}: has changed (same size, different sha256)")
    names = {file.file for file in recorded}
    for pattern in patterns if recorded else ():
        new = [path for path in matching_files(pattern) if str(path) not in names]
        changes += [f"{path}: was added ({pattern!r} matches it)" for path in new]
    return changes


def as_it_is(path: Path) -> SourceFile:
    """``path`` with its current size and modification time, without sha256. UserError: its name is not UTF-8."""
    _refuse_undecoded(path, "a data set's file")
    stat = path.stat()
    return SourceFile(file=str(path), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)


def _refuse_undecoded(path: Path, where: str) -> None:
    if _UNDECODED.search(str(path)):
        raise UserError(f"{where}: {path}: the name is not UTF-8; rename the file")
