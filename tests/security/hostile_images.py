"""Images that do more than be seen, and the exported code that reads images, without torch."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
import types
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import jasper_jax.export.remote

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(owned) print\n%%EOF\n"


def exported_code() -> Any:
    """``sentence_jasper_vl.py`` as a module; torch and the libraries of models are empty stand-ins."""
    stubs = {name: types.ModuleType(name) for name in ("torch", "transformers", "sentence_transformers.base.modules")}
    stubs["sentence_transformers.base.modules"].InputModule = object  # pyright: ignore
    for name in ("AutoConfig", "AutoImageProcessor", "AutoModel", "AutoTokenizer", "PreTrainedTokenizerBase"):
        setattr(stubs["transformers"], name, object)
    path = Path(*jasper_jax.export.remote.__path__) / "sentence_jasper_vl.py"
    spec = importlib.util.spec_from_file_location("hostile_sentence_jasper_vl", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stubs):
        spec.loader.exec_module(module)
    return module


def png(width: int, height: int) -> bytes:
    """A small PNG of one colour: a thousandth of the memory that it takes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiled(side: int, *more: tuple[int, int, int], order: str = "<", big: bool = False) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of ``side`` x ``side``, all black; ``more``: further entries, before those
    that say this."""
    rows = zlib.compressobj(9)
    tile = b"".join(rows.compress(bytes(side)) for _ in range(side)) + rows.flush()
    size, entry = (16, "HHQQ") if big else (8, "HHII")
    first = [(tag, 4, value) for tag, value in ((256, 64), (257, 64), (322, side), (323, side), (325, len(tile)))]
    first += [(tag, 3, value) for tag, value in ((258, 8), (259, 8), (262, 1), (277, 1))]
    count = len(first) + len(more) + 1
    start = size + struct.calcsize(f"{order}{entry}") * count + (16 if big else 6)
    entries = sorted([*more, *first, (324, 4, start)], key=lambda item: item[0])

    def packed(tag: int, kind: int, value: int) -> bytes:
        room = 8 if big else 4
        form = {3: "H", 4: "I"}.get(kind, "I")
        data = struct.pack(f"{order}{form}", value).ljust(room, b"\0")
        return struct.pack(f"{order}HH{'Q' if big else 'I'}", tag, kind, 1) + data

    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    ifd = struct.pack(f"{order}{'Q' if big else 'H'}", count) + b"".join(packed(*item) for item in entries)
    return mark + head + ifd + bytes(8 if big else 4) + tile


def icon(inner: bytes) -> bytes:
    """An ICO that says 16 x 16 and holds ``inner``."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def picture(kind: str = "PNG") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(out, kind)
    return out.getvalue()
