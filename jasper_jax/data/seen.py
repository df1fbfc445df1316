"""Which texts were seen: their 16-byte hashes in a table on disk, so that memory does not grow with their number."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

CACHE_KIB = 4 << 10
"""Memory of the table; the operating system keeps more of the file where it has room. Four times as much saved 2% of
the processor's time of a build with 800 thousand hashes."""
_AT_ONCE = 500
"""Hashes in one statement; SQLite takes 999 values, or more."""


class Seen:
    """A set of 16-byte hashes in the file ``path``, which ``close`` deletes. For one thread.

    The table is asked and written for many hashes at once: SQLite lets other threads run at every call, and then waits
    for them.
    """

    def __init__(self, path: Path):
        self._path = path
        self._found: set[bytes] = set()
        self._new: list[bytes] = []
        path.touch()  # a folder that cannot be written is the system's error
        # Nobody else opens the file, and some network file systems have no locks.
        self._table = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}"):
            self._execute(f"PRAGMA {setting}").fetchall()
        self._execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._execute("BEGIN")

    def expect(self, digests: Sequence[bytes]) -> None:
        """Look these hashes up: :meth:`add` takes no others until the next call."""
        self._write()
        self._found = set()
        for some in _pieces(digests):
            found = self._execute(f"SELECT digest FROM seen WHERE digest IN ({','.join('?' * len(some))})", some)
            self._found.update(digest for (digest,) in found)

    def add(self, digest: bytes) -> bool:
        """Add an expected hash; whether it is new."""
        if digest in self._found:
            return False
        self._found.add(digest)
        self._new.append(digest)
        return True

    def has(self, digest: bytes) -> bool:
        """Whether an expected hash was added."""
        return digest in self._found

    def __contains__(self, digest: bytes) -> bool:
        self._write()
        return self._execute("SELECT 1 FROM seen WHERE digest = ?", (digest,)).fetchone() is not None

    def _write(self) -> None:
        for some in _pieces(self._new):
            self._execute(f"INSERT INTO seen VALUES {','.join(['(?)'] * len(some))}", some)
        self._new = []

    def _execute(self, statement: str, values: Sequence[bytes] = ()) -> sqlite3.Cursor:
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


def _pieces(digests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (digests[start : start + _AT_ONCE] for start in range(0, len(digests), _AT_ONCE))
