"""Files that somebody else named, read within bounds: regular files only, of at most so many bytes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

RECORD = 1 << 28
"""Bytes of a record, such as a manifest, a config or scores: JSON that is read as one."""


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a regular file. A pipe or device is neither opened for reading nor waited for.

    Raises:
      OSError: with ``strerror``: it is not a regular file, has more than ``most`` bytes, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = bytearray()
        part = max(found.st_size + 1, 1 << 16)  # a read makes room for all that it may read
        while len(data) <= most >= found.st_size and (more := file.read(min(part, most + 1 - len(data)))):
            data += more
    if max(len(data), found.st_size) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return bytes(data)


def read_record_bytes(path: Path) -> bytes:
    """:func:`read_regular` of at most ``RECORD`` bytes."""
    return read_regular(path, RECORD)
