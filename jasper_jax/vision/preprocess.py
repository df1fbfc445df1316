"""From an RGB image to a vision encoder's input, as in a checkpoint's ``preprocessor_config.json``.

``prepare`` runs on the host and returns 8 bits, a quarter of the memory of float32; ``normalise`` belongs in the jitted
step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.images import pillow

if TYPE_CHECKING:
    from PIL import Image

_MOST_ASPECT = 64  # longer images are cropped first: scaled by the short edge they would fill the memory


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop, rescale, normalise. Hashable; ``processor_config.read_preprocessing`` makes one of a config."""

    kind: str
    """The equivalent class of transformers."""
    resize: int
    """Pixels of the shortest edge where there is a ``crop``, else of each side."""
    crop: int | None
    """Pixels of a side of the centred square, padded with black."""
    resample: int
    """Pillow's number of the filter."""
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exact: bool = False
    """``resize`` is of each side in spite of a crop."""

    @property
    def size(self) -> int:
        """S, pixels of a side of what ``prepare`` returns."""
        return self.resize if self.crop is None else self.crop

    def with_size(self, pixels: int) -> Preprocessing:
        """The same for images of ``pixels`` a side; a crop keeps its share of the resized image."""
        if pixels == self.size:
            return self
        if self.crop is None:
            return dataclasses.replace(self, resize=pixels)
        resize = max(round(self.resize * pixels / self.crop), 1)
        return dataclasses.replace(self, resize=resize, crop=pixels)

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "S S 3"]:
        """A Pillow image -> ``[S, S, 3]`` levels of 0 to 255."""
        Image = pillow()
        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.crop is None or self.exact:
            width = height = self.resize
        else:
            image = _middle(image)
            short, long = sorted(image.size)
            other = int(self.resize * long / short)
            width, height = (self.resize, other) if image.width <= image.height else (other, self.resize)
        pixels = np.asarray(image.resize((width, height), Image.Resampling(self.resample)))
        return pixels if self.crop is None else _centre(pixels, self.crop)

    def normalise(self, pixels: Any) -> Any:
        """``[..., 3]`` levels -> float32, ``(levels · rescale_factor - mean) / std``; numpy or JAX, as given."""
        scaled = pixels.astype(np.float32) * np.float32(self.rescale_factor)
        return (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def to_hf(self) -> dict[str, Any]:
        """The equivalent ``preprocessor_config.json`` of transformers."""
        square = {"height": self.resize, "width": self.resize}
        crop = {} if self.crop is None else {"crop_size": {"height": self.crop, "width": self.crop}}
        return {
            "image_processor_type": self.kind,
            "do_resize": True,
            "size": square if self.crop is None or self.exact else {"shortest_edge": self.resize},
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            **crop,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }


_HALF = (0.5, 0.5, 0.5)
_OPENAI_MEAN, _OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3

KINDS = {
    "SiglipImageProcessor": Preprocessing("SiglipImageProcessor", 224, None, BICUBIC, 1 / 255, _HALF, _HALF),
    "CLIPImageProcessor": Preprocessing("CLIPImageProcessor", 224, 224, BICUBIC, 1 / 255, _OPENAI_MEAN, _OPENAI_STD),
    "BitImageProcessor": Preprocessing("BitImageProcessor", 224, 224, BICUBIC, 1 / 255, _OPENAI_MEAN, _OPENAI_STD),
}
"""transformers' class -> its defaults."""
_PUBLISHED = {
    "siglip_vision_model": KINDS["SiglipImageProcessor"],
    "clip_vision_model": KINDS["CLIPImageProcessor"],
    "dinov2": Preprocessing("BitImageProcessor", 256, 224, BICUBIC, 1 / 255, _IMAGENET_MEAN, _IMAGENET_STD),
}


def default_for(model_type: str) -> Preprocessing:
    """The preprocessing of a vision family's published checkpoints. UserError: an unknown model type."""
    if model_type not in _PUBLISHED:
        raise UserError(f"no image processing is known for {model_type!r}; those known are {', '.join(_PUBLISHED)}")
    return _PUBLISHED[model_type]


def _middle(image: Image.Image) -> Image.Image:
    """The image, cropped to its middle where it is extremely long."""
    width, height = image.size
    most = _MOST_ASPECT * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(width - most, 0) // 2, max(height - most, 0) // 2
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def _centre(pixels: np.ndarray, side: int) -> np.ndarray:
    """The centred square of ``[H, W, 3]``, padded with black."""
    out = np.zeros((side, side, 3), pixels.dtype)
    into, out_of = [], []
    for n in pixels.shape[:2]:
        kept, before = min(n, side), -(-max(side - n, 0) // 2)
        into.append(slice(before, before + kept))
        out_of.append(slice((n - kept) // 2, (n - kept) // 2 + kept))
    out[tuple(into)] = pixels[tuple(out_of)]
    return out
