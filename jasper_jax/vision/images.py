"""Image files as 8-bit RGB: every bad file is a line that names it, none can take all memory, none stays open.

The header is read first, and an image of too many pixels is refused before a pixel is decoded. Only formats whose
decoders work on their own are tried: Pillow would hand EPS to another program.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jasper_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "QOI")
MAX_PIXELS = 64_000_000
_BROKEN = (  # what Pillow's decoders raise for files that are not what they say
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
    """Pillow's ``Image`` module. Its warnings are silenced: what they would say is refused or handled here. They are
    silenced for the process, as ``catch_warnings`` is not for threads."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images need Pillow, which is not installed: pip install 'jasper-jax[vision]'") from None
    if _FROM_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def open_image(source: bytes | Path | Image.Image, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image, whole, as RGB: a file's bytes, a path, or an image of Pillow's (which is left as it is).

    Of an animation the first frame; turned as its EXIF orientation says; transparency over white; 16-bit grey scaled
    to 8. Errors: ``UserError`` that begins with ``where``, for a path that is not there or cannot be read, another
    format, more than ``max_pixels`` pixels, an undecodable or truncated file.
    """
    Image = pillow()
    if isinstance(source, Image.Image):
        return _decoded(source, where, max_pixels)
    if isinstance(source, Path):
        try:
            source = source.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{where}: there is no file {source}; correct the path or leave the row out") from None
        except OSError as error:
            raise UserError(f"{where}: {source} cannot be read ({error.strerror}); give the path of an image") from None
    if not source:
        raise UserError(f"{where}: the image is empty (0 bytes); replace it or leave the row out")
    Image.init()
    try:
        with Image.open(io.BytesIO(source), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            return _decoded(image, where, max_pixels)
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise _too_large(where, f"{int(found.group()):,}" if found else "too many", max_pixels) from None
    except Image.UnidentifiedImageError:
        listed = ", ".join(FORMATS)
        raise UserError(f"{where}: no image that can be read; the formats are {listed}: convert or remove it") from None
    except _BROKEN as error:
        raise _undecodable(where, error) from None


def _decoded(image: Image.Image, where: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(where, f"{width} x {height} = {width * height:,}", max_pixels)
    try:
        image.load()
        return _rgb(_upright(image), where)
    except _BROKEN as error:
        raise _undecodable(where, error) from None


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held; unreadable EXIF data says nothing about it."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _rgb(image: Image.Image, where: str) -> Image.Image:
    """A new image in mode RGB, whatever the mode."""
    Image = pillow()
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(f"{where}: 32-bit grey has no agreed white; store the image with 8 or 16 bits")
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UserError(f"{where}: floating-point grey has no agreed white; store the image with 8 or 16 bits")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _too_large(where: str, pixels: str, max_pixels: int) -> UserError:
    return UserError(f"{where}: the image has {pixels} pixels, at most {max_pixels:,} are read: scale it down")


def _undecodable(where: str, error: BaseException) -> UserError:
    why = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{where}: the image cannot be decoded ({why}); replace it or leave the row out")
