"""Files that are whole or not there: atomic writing, checksums, the lock of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from jasper_jax.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name, flush it to disk, and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(folder: Path, what: str) -> Iterator[None]:
    """Hold ``folder`` for this process alone; the lock goes with the process.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(
            f"{folder}: another process is at work in this run folder ({what}); wait for it, or set run_dir=..."
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another with run_dir=...") from None
    try:
        yield
    finally:
        lock.release()
