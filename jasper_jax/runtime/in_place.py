"""Files of a folder, perhaps somebody else's, that are written where they are: locks, and databases of SQLite.

All other files of a run are replaced, which changes no file that has a second name or is behind a link. An archive may
hold both, to ``../../.ssh/id``.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

import filelock

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside

_BESIDE = ("", "-journal", "-wal", "-shm")
"""Endings of the files that SQLite has for a database."""
_NAMES_ANOTHER = bytes.fromhex("d9d505f920a163d7")
"""How a journal of SQLite ends that names a second one, of a transaction in several databases."""


def folder_lock(path: Path) -> filelock.FileLock:
    """The lock in the file ``path``. UserError: that is a file of others, which many versions of filelock empty."""
    _refuse_second_name(path)
    return filelock.FileLock(path)


def own_database(path: Path) -> Path:
    """``path``, to be opened by the address ``sqlite:///...``; nothing need be there.

    When SQLite opens a database it takes back the transaction that a kill ended, as the journal beside it says. If this
    names a second journal, SQLite deletes the file of that name, whatever it is.

    Raises:
      UserError: it, or a file that SQLite has beside it, is a link out of the folder or also elsewhere; its journal
        names another file; or its path means another one in an address.
    """
    if found := re.search("[?%]", str(path)):
        raise UserError(
            f"{path}: in the address of a database {found[0]} has a meaning, so another one would be written; set"
            f" run_dir=... to a folder without ? and %"
        )
    for file in (path.with_name(path.name + ending) for ending in _BESIDE):
        if os.path.lexists(file):
            _refuse_second_name(file_inside(file))
    journal = path.with_name(f"{path.name}-journal")
    if _end(journal, len(_NAMES_ANOTHER)) == _NAMES_ANOTHER:
        raise UserError(
            f"{journal}: names another file, which SQLite would delete, and no logger writes that; delete it, and"
            f" {path.name} with it"
        )
    return path


def _refuse_second_name(file: Path) -> None:
    """UserError: ``file`` has content, and another name."""
    with contextlib.suppress(FileNotFoundError):
        found = file.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and found.st_size:
            raise UserError(
                f"{file}: has a second name elsewhere (a hard link), and what is there would be written too; copy it,"
                " and put the copy in its place"
            )


def _end(file: Path, count: int) -> bytes:
    """The last ``count`` bytes of a regular file; empty without one."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - count))
            return opened.read(count)
    except FileNotFoundError:
        return b""
