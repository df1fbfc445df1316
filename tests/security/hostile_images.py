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


def icon(inner: bytes) -> bytes:
    """An ICO that says 16 x 16 and holds ``inner``."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def picture(kind: str = "PNG") -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(out, kind)
    return out.getvalue()
