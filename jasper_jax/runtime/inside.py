"""Which files of a folder from elsewhere may be read: regular files that are in it.

A model folder can hold a link to a private key under the name of a tokenizer file, and what is read from it goes to an
export and to a mirror.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jasper_jax.runtime.errors import UserError


def inside(folder: Path, name: str | os.PathLike[str]) -> Path | None:
    """The resolved path of ``name``, which may be relative to ``folder``; None if links or dots lead out of it."""
    try:
        real = folder.resolve()
        path = (real / os.fspath(name)).resolve()
        return path if path.is_relative_to(real) and _can_be_opened(path) else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL character, circular links
        return None


def file_inside(path: Path, root: Path | None = None) -> Path:
    """The file that ``path`` is, with links followed: a regular file in ``root`` (by default, its folder) or below.

    The links of the Hugging Face hub's cache are followed too: from ``snapshots/<revision>`` to ``blobs`` beside it.

    Raises:
      UserError: a link to elsewhere, no regular file (a FIFO, a device), or a name that no file can have.
      OSError: there is no such file, or it may not be read.
    """
    if not _can_be_opened(path):
        raise UserError(f"{path}: no file can have this name, or its links lead in a circle; put a regular file there")
    real, folder = Path(os.path.realpath(path, strict=True)), Path(os.path.realpath(root or path.parent))
    if not stat.S_ISREG(real.stat().st_mode):
        raise UserError(f"{path}: is not a regular file; put one there")
    if not _is_below(real, path, folder):
        raise UserError(f"{path}: is a link to a file outside its folder; put the file itself there (cp -L)")
    return real


def leads_out(path: Path, root: Path) -> bool:
    """Whether the links of the existing ``path``, which is below ``root`` by its name, lead out of it; the links of the
    hub's cache do not."""
    return not _is_below(Path(os.path.realpath(path)), path, Path(os.path.realpath(root)))


def _is_below(real: Path, path: Path, folder: Path) -> bool:
    """Whether ``real``, to which the links of ``path`` lead, is in ``folder`` or is a blob of the hub's cache."""
    place = Path(os.path.realpath(path.parent))
    return real.is_relative_to(folder) or (place.is_relative_to(folder) and real.parent in _blobs(place))


def folder_inside(root: Path, name: str, where: Path | None = None) -> Path:
    """``root / name``, a folder that is in ``root`` with links followed, or does not exist; ``where`` names it.

    Raises:
      UserError: ``name`` is absolute, has ``..``, leads elsewhere by a link, or no file can have it.
    """
    path = root / name
    if ".." in Path(name).parts or inside(root, path) is None:
        raise UserError(
            f"{where or root}: {name!r} is not a folder inside {root}; put the folder itself there (cp -rL)"
        )
    return path


def refuse_links(folder: Path) -> None:
    """UserError if anything in ``folder`` is a link to elsewhere or no regular file: before a library reads what it
    finds there."""
    for place, folders, files in os.walk(folder):
        for name in folders:
            folder_inside(Path(place), name)
        for name in files:
            file_inside(Path(place) / name)


def _can_be_opened(path: Path) -> bool:
    """False for what is no name of a file: too long, a NUL character, half a surrogate pair, links in a circle."""
    try:
        path.stat()
    except (FileNotFoundError, PermissionError):
        return True
    except (OSError, ValueError):
        return False
    return True


def _blobs(folder: Path) -> list[Path]:
    """Where the hub's cache keeps the files of the snapshot that ``folder`` is, or is in."""
    return [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
