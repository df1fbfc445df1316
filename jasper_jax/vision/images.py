"""An image out of whatever it is kept in: decoded whole, RGB, upright; refused when it cannot be used."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jasper_jax.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000


def open_image(source: bytes | Path | Image, where: str, max_pixels: int = MAX_PIXELS) -> Image:
    """``source`` (the bytes of a file, its path, or a PIL image) as RGB.

    What is transparent is laid on white; of an animation the first frame is taken; CMYK, palettes and 16-bit greys are
    converted; a camera's orientation is applied. The size is read before anything is decoded.

    Raises:
      UserError: naming ``where``: not an image, cut short, missing, or of more than ``max_pixels`` (a small file can
        stand for a huge image).
    """
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images need Pillow: pip install 'jasper-jax[vision]'") from None
    if isinstance(source, os.PathLike):
        where = f"{where}: {source}" if str(source) not in where else where
        if not Path(source).is_file():
            raise UserError(
                f"{where}: {'is a folder' if Path(source).is_dir() else 'no such file'}; give an image's file"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own word on large or odd files
            if isinstance(source, Image.Image):
                _refuse_large(source, where, max_pixels)
                return _as_rgb(source)
            stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
            with stream, Image.open(stream) as image:
                _refuse_large(image, where, max_pixels)
                image.seek(0)
                image.load()
                return _as_rgb(image)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (a decoder may raise anything)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "cannot identify" in reason:
            reason = "no image format that is known"
        raise UserError(f"{where}: cannot be decoded ({reason}); replace it, or leave it out") from None


def _refuse_large(image: Image, where: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"{where}: {width:,} x {height:,} pixels; at most {max_pixels:,} are decoded (images.max_pixels): shrink it"
        )
    if width < 1 or height < 1:
        raise UserError(f"{where}: {width} x {height} pixels, which is no image")


def _as_rgb(image: Image) -> Image:
    """Upright, without transparency, 8 bits a colour."""
    from PIL import Image as pil
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return pil.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Greys of 16 bits (``I;16``, or ``I`` as some files are read), or of float, scaled to 8: Pillow would clip them."""
    values = values.astype(np.float64)
    if mode == "F":
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        scale = 1.0 if low >= 0 and 1.0 < high <= 255 else 255.0 / max(high - low, 1e-12)
        values = np.nan_to_num((values - (low if scale != 1.0 else 0.0)) * scale)
    elif mode.startswith("I;16") or values.max(initial=0) > 255:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
