"""Image files as 8-bit RGB. A bad file is a one-line error that names it.

The header is read first: an image with too many pixels raises before anything is decoded. Only formats with built-in
decoders are allowed: Pillow would pass EPS to another program. ICO is not: the PNG in it may be larger than its header
says. ``export/remote/sentence_jasper_vl.py`` has the same formats and limits.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np

from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import inside

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "QOI")
MAX_PIXELS = 64_000_000
MAX_BYTES = 1 << 28
"""Of an encoded image."""
_SAME = ("MPO", "DIB", "APNG")
"""What Pillow calls some files of these formats."""
_BROKEN = (  # what Pillow's decoders raise for broken files
    OSError,
    ValueError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)
_FROM_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def pillow():
    """Pillow's ``Image`` module. Its warnings are silenced, because this file handles their causes; for all threads,
    because ``catch_warnings`` is not thread-safe."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images need Pillow, which is not installed: pip install 'jasper-jax[vision]'") from None
    if _FROM_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


class ImageFile(NamedTuple):
    """A path in an input, and the folder that its file must be in."""

    root: Path
    name: Path

    def read(self, where: str) -> bytes:
        """Its bytes. UserError, the same for whatever the path leads to: no file in the folder that can be read."""
        path = inside(self.root, self.name)
        try:
            if path is not None:
                return read_regular(path, MAX_BYTES)
        except OSError:
            pass
        raise UserError(
            f"{where}: {str(self.name)!r} is no file under image_root that can be read; give the path of an image there"
            f" of at most {MAX_BYTES:,} bytes"
        )


def open_image(source: bytes | Image.Image, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded RGB image from a file's bytes or a Pillow image (which is not changed).

    The first frame of an animation, rotated by its EXIF orientation; transparency over white; 16-bit grey scaled to 8.
    UserError, beginning with ``where``: another format, more than ``max_pixels`` pixels or ``MAX_BYTES`` bytes,
    undecodable or truncated data.
    """
    Image = pillow()
    if isinstance(source, Image.Image):
        if getattr(source, "tile", None) and source.format not in (*FORMATS, *_SAME):
            raise UserError(
                f"{where}: a Pillow image of the format {source.format} that is not decoded yet; the formats are"
                f" {', '.join(FORMATS)}; call its load() first if you trust its decoder"
            )
        return _decoded(source, where, max_pixels)
    if not source:
        raise UserError(f"{where}: the image is empty (0 bytes); replace it or remove the row")
    if len(source) > MAX_BYTES:
        raise UserError(f"{where}: the image has more than {MAX_BYTES:,} bytes: scale it down")
    Image.init()
    try:
        with Image.open(io.BytesIO(source), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return _decoded(image, where, max_pixels)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(where, f"{int(pixels.group()):,}" if pixels else "too many", max_pixels) from None
    except Image.UnidentifiedImageError:
        listed = ", ".join(FORMATS)
        raise UserError(f"{where}: not a readable image; the formats are {listed}: convert or remove it") from None
    except _BROKEN as error:
        raise _undecodable(where, error) from None


def _decoded(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(where, f"{width} x {height} = {width * height:,}", max_pixels)
    try:
        if image.format == "TIFF" and getattr(image, "tile", None):
            largest = _tile_pixels(cast(BinaryIO, getattr(image, "fp")))  # noqa: B009  (of files alone)
            if largest > max_pixels:
                raise _too_large(where, f"tiles of {largest:,}", max_pixels)
        image.load()
        return _rgb(_upright(image), where)
    except _BROKEN as error:
        raise _undecodable(where, error) from None


def _tile_pixels(file: BinaryIO) -> int:
    """The pixels of a TIFF's tile, which libtiff unpacks whole however small the image is; 0 without tiles. Of a size
    that is there twice Pillow and libtiff read different ones: here the larger counts."""
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    file.seek(struct.unpack(f"{order}Q" if big else f"{order}4xI", head[8:] if big else head[:8])[0])
    (entries,) = struct.unpack(f"{order}Q" if big else f"{order}H", file.read(8 if big else 2))
    sides = {322: 0, 323: 0}
    for _ in range(min(entries, 65_535)):
        tag, kind, value = struct.unpack(f"{order}HH8x8s" if big else f"{order}HH4x4s", file.read(20 if big else 12))
        if tag in sides:
            form = {1: "B", 3: "H", 4: "I", 16: "Q" if big else None}.get(kind)
            side = struct.unpack_from(f"{order}{form}", value)[0] if form else 1 << 32
            sides[tag] = max(sides[tag], side)
    return sides[322] * sides[323]


def _upright(image: Image.Image) -> Image.Image:
    """Rotated by the EXIF orientation; unreadable EXIF data is ignored."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _rgb(image: Image.Image, where: str) -> Image.Image:
    """A new image in mode RGB, whatever the mode."""
    Image = pillow()
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"{where}: 32-bit grey has no defined white; store the image with 8 or 16 bits")
        levels = grey.astype(np.uint32)  # in place from here: an image may have many pixels
        levels *= 255
        levels += 32767
        levels //= 65535
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{where}: floating-point grey has no defined white; store the image with 8 or 16 bits")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _too_large(where: str, pixels: str, max_pixels: int) -> UserError:
    return UserError(f"{where}: the image has {pixels} pixels, at most {max_pixels:,} are read: scale it down")


def _undecodable(where: str, error: BaseException) -> UserError:
    why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{where}: the image cannot be decoded ({why}); replace it or remove the row")
