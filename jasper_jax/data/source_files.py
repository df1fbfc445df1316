"""The local files a store was built from: recorded beside it, so that a later change does not go unnoticed.

A file is the one recorded when its size and its time of change are; where only the time differs (a copy, a touch)
its sha256 decides. So a command costs a ``stat`` a file, and reads the bytes again only when there is a reason to.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from jasper_jax.recipe.config_sources import FILE_KINDS, TextSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file


class SourceFile(BaseModel):
    """A source file as it was when it was read; ``file`` is its path as the recipe leads to it."""

    model_config = ConfigDict(strict=True)

    file: str
    bytes: int
    mtime_ns: int
    sha256: str = ""


def matching(pattern: str, key: str = "texts.sources") -> list[Path]:
    """The files that the path or glob at ``key`` of the recipe names, sorted.

    Raises:
      UserError: there is none.
    """
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    if not found:
        raise UserError(f"{key}: no file matches {pattern!r} (relative paths start at {Path.cwd()})")
    return found


def pattern_of(source: TextSource) -> str | None:
    """The path or glob of a source of local text files, None for another kind."""
    return next((getattr(source, kind) for kind in FILE_KINDS if getattr(source, kind) is not None), None)


def patterns_of(sources: Sequence[TextSource]) -> list[str]:
    return [pattern for source in sources if (pattern := pattern_of(source)) is not None]


def local_files(patterns: Sequence[str]) -> list[SourceFile]:
    """Every local file of the sources with its size and time; not read yet, so without sha256."""
    return [as_it_is(path) for path in sorted({path for pattern in patterns for path in matching(pattern)})]


def hashed(files: Sequence[SourceFile]) -> list[SourceFile]:
    """``files`` with their sha256, after they have been read.

    Raises:
      UserError: one is not the same any more, so that nobody knows what was read.
    """
    for file in files:
        path = Path(file.file)
        if not os.path.isfile(path) or as_it_is(path) != file:
            raise UserError(f"{path}: was changed while it was read; run again when nothing writes to it")
    return [file.model_copy(update={"sha256": sha256_file(Path(file.file))}) for file in files]


def changed_files(recorded: Sequence[SourceFile], patterns: Sequence[str]) -> list[str]:
    """One clause for each source file that is not as recorded, or matches ``patterns`` and was not there.

    A recorded file that is gone is no change: the store holds what was in it. Nothing recorded (a store of an earlier
    version) gives nothing to compare.
    """
    found = []
    known = {file.file for file in recorded}
    for file in recorded:
        path = Path(file.file)
        if not os.path.isfile(path):
            continue
        now = as_it_is(path)
        if now.bytes != file.bytes:
            found.append(f"{path}: has changed ({file.bytes:,} bytes then, {now.bytes:,} now)")
        elif now.mtime_ns != file.mtime_ns and sha256_file(path) != file.sha256:
            found.append(f"{path}: has changed (the size is the same, the sha256 is not)")
    for pattern in patterns if recorded else ():
        new = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p) and str(Path(p)) not in known)
        found += [f"{path}: was added ({pattern!r} matches it)" for path in new]
    return found


def as_it_is(path: Path) -> SourceFile:
    """``path`` with its size and time of change now; not read, so without sha256."""
    stat = path.stat()
    return SourceFile(file=str(path), bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)
