"""Which texts were seen: their 16-byte hashes in a table on disk, so that memory does not grow with their number."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Self

CACHE_KIB = 16 << 10
"""Memory of the table; about half a million hashes. The operating system keeps more of the file where it has room."""


class Seen:
    """A set of 16-byte hashes in the file ``path``, which ``close`` deletes. For one thread."""

    def __init__(self, path: Path):
        self._path = path
        # Nobody else opens the file, and some network file systems have no locks.
        self._table = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self._execute(f"PRAGMA {setting}").fetchall()
        self._execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._execute("BEGIN")

    def add(self, digest: bytes) -> bool:
        """Add a hash; whether it is new."""
        return bool(self._execute("INSERT OR IGNORE INTO seen VALUES (?)", digest).rowcount)

    def __contains__(self, digest: bytes) -> bool:
        return self._execute("SELECT 1 FROM seen WHERE digest = ?", digest).fetchone() is not None

    def _execute(self, statement: str, *values: bytes) -> sqlite3.Cursor:
        try:
            return self._table.execute(statement, values)
        except sqlite3.OperationalError as error:  # of the file, e.g. a full disk
            number = errno.ENOSPC if error.sqlite_errorname == "SQLITE_FULL" else errno.EIO
            raise OSError(number, f"{os.strerror(number)} ({error})", str(self._path)) from None

    def close(self) -> None:
        self._table.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
