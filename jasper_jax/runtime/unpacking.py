"""Compressed files as streams, which a small file cannot make endless.

The format is decided by the first bytes. At most ``RATIO`` times the bytes read are unpacked, and always ``FREE``:
text is packed to a tenth, images hardly at all, and bombs to a thousandth or a millionth.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

from jasper_jax.runtime.errors import UserError

FREE = 1 << 28
RATIO = 200
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError)
"""What reading a damaged file raises."""
_XZ_MEMORY = 1 << 28
"""Bytes that an xz file may ask for; ``xz -9`` asks for a quarter."""


class _Xz(io.RawIOBase):
    """An xz file of one or more streams; ``lzma.LZMAFile`` gives each the memory that it asks for."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._stream: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None or self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0") if self._stream else b""
                packed = packed or self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not packed.strip(b"\0"):
                    return 0
                self._stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self._stream.needs_input:
                packed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not packed:
                    raise EOFError("the end of the stream is missing")
            else:
                packed = b""
            if data := self._stream.decompress(packed, len(buffer)):
                buffer[: len(data)] = data
                return len(data)


def _zstd(file: IO[bytes]) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")  # its window is at most 128 MiB


_FORMATS: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _zstd),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\x00": ("xz", _Xz),
}


class _Bounded(io.RawIOBase):
    """The bytes of ``stream``, which unpacks ``file``. UserError: they are too many for it."""

    def __init__(self, stream: Any, file: IO[bytes], where: str):
        self._stream, self._file, self._where, self._unpacked = stream, file, where, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._unpacked += len(data)
        if self._unpacked > FREE and self._unpacked > RATIO * self._file.tell():
            raise UserError(
                f"{self._where}: unpacks to more than {RATIO} times its size, as no text or image does; if you trust"
                " it, unpack it first and give the unpacked file"
            )
        return len(data)


def unpacked(file: IO[bytes], where: str) -> tuple[IO[bytes], str]:
    """The stream of uncompressed bytes of a file that can seek, and the name of the compression or an empty string."""
    start = file.read(16)
    file.seek(0)
    for magic, (name, opened) in _FORMATS.items():
        if start.startswith(magic):
            return io.BufferedReader(_Bounded(opened(file), file, where), 1 << 16), name
    return file, ""
