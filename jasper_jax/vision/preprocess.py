"""How a vision checkpoint wants its images: size, crop, resampling, mean and deviation, as its own processor does it.

``preprocessor_config.json`` is read strictly; resizing is Pillow's, which is what transformers' processors call. What
touches every number (scaling to [0, 1], mean, deviation) is left to the jitted step: images travel as bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_HALF = (0.5, 0.5, 0.5)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
_ELONGATED = 32
"""Where only the middle is kept, no more of an image than this many times its short side is resized."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """``size`` pixels of a side, in the end. ``edge``: the shorter side is resized to it, then the middle is cut out;
    None: the image is resized to the square as it is. ``resample``: Pillow's number. ``processor``: its class."""

    size: int
    edge: int | None
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    processor: str

    @classmethod
    def read(cls, folder: str | Path) -> Preprocessing:
        """``preprocessor_config.json`` of a model folder."""
        path = Path(folder) / "preprocessor_config.json"
        return cls.from_hf(read_object(path), str(path))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str) -> Preprocessing:
        """What a ``preprocessor_config.json`` says. UserError for a processor or setting that is not implemented."""
        name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        kind = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        if kind not in _DEFAULTS:
            raise UserError(f"{where}: image processor {name!r} is not implemented; {', '.join(_DEFAULTS)} are")
        default = _DEFAULTS[kind]
        for key in ("do_resize", "do_rescale", "do_normalize"):
            if config.get(key, True) is not True:
                raise UserError(f"{where}: {key} is {config[key]!r}; only true is implemented")
        factor = config.get("rescale_factor", 1 / 255)
        if not isinstance(factor, (int, float)) or abs(factor * 255 - 1) > 1e-6:
            raise UserError(f"{where}: rescale_factor is {factor!r}; only 1/255 is implemented")
        crop = config.get("do_center_crop", default.edge is not None)
        whole = _square(config.get("size", default.edge or default.size), where, "size", edge=bool(crop))
        size = _square(config.get("crop_size", default.size), where, "crop_size") if crop else whole
        return cls(
            size=size,
            edge=whole if crop else None,
            resample=_resampling(config.get("resample", default.resample), where),
            mean=_colours(config.get("image_mean", default.mean), where, "image_mean"),
            std=_colours(config.get("image_std", default.std), where, "image_std"),
            processor=kind,
        )

    @classmethod
    def default_for(cls, model_type: str) -> Preprocessing:
        """As a family of vision encoders usually has it, for a folder that does not say."""
        return _BY_FAMILY[model_type]

    def with_size(self, size: int) -> Preprocessing:
        """For images of ``size`` pixels of a side; what is cut off at the edges stays the same share."""
        edge = None if self.edge is None else max(size, round(self.edge * size / self.size))
        return dataclasses.replace(self, size=size, edge=edge)

    def prepare(self, image: Image) -> np.ndarray:
        """An RGB image -> ``[S, S, 3]`` uint8."""
        if self.edge is None:
            return np.asarray(image.resize((self.size, self.size), self.resample))
        width, height = image.size
        short, long = min(width, height), max(width, height)
        if long > short * _ELONGATED:  # or a picture of 20,000 x 1 pixels would become one of millions
            keep = short * _ELONGATED
            left, top = (width - min(width, keep)) // 2, (height - min(height, keep)) // 2
            image = image.crop((left, top, left + min(width, keep), top + min(height, keep)))
            width, height = image.size
            long = max(width, height)
        longer = int(self.edge * long / short)
        resized = image.resize((self.edge, longer) if width <= height else (longer, self.edge), self.resample)
        return _middle(np.asarray(resized), self.size)

    def normalise(self, pixels: Any) -> Any:
        """``[..., 3]`` uint8, NumPy or JAX -> float32 of about mean 0 and deviation 1, as the encoder takes it."""
        module = np if isinstance(pixels, np.ndarray) else jnp
        scaled = pixels.astype(np.float32) * np.float32(1 / 255)
        return module.asarray((scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32))

    def to_hf(self) -> dict[str, Any]:
        """A ``preprocessor_config.json`` that transformers reads back to the same."""
        size: dict[str, int] = {"height": self.size, "width": self.size}
        config: dict[str, Any] = {
            "image_processor_type": self.processor,
            "do_resize": True,
            "size": size if self.edge is None else {"shortest_edge": self.edge},
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_convert_rgb": True,
        }
        if self.processor != "SiglipImageProcessor" or self.edge is not None:
            config["do_center_crop"] = self.edge is not None
            config["crop_size"] = size
        return config


_DEFAULTS = {
    "SiglipImageProcessor": Preprocessing(224, None, BICUBIC, _HALF, _HALF, "SiglipImageProcessor"),
    "CLIPImageProcessor": Preprocessing(224, 224, BICUBIC, *_CLIP, "CLIPImageProcessor"),
    "BitImageProcessor": Preprocessing(224, 224, BICUBIC, *_CLIP, "BitImageProcessor"),
}
_BY_FAMILY = {
    "siglip_vision_model": _DEFAULTS["SiglipImageProcessor"],
    "clip_vision_model": _DEFAULTS["CLIPImageProcessor"],
    "dinov2": Preprocessing(224, 256, BICUBIC, *_IMAGENET, "BitImageProcessor"),
}


def _square(value: Any, where: str, key: str, *, edge: bool = False) -> int:
    """A size: a number, a square, or with ``edge`` the shorter side."""
    if isinstance(value, Mapping):
        if edge and set(value) == {"shortest_edge"}:
            value = value["shortest_edge"]
        elif set(value) == {"height", "width"} and value["height"] == value["width"] and not edge:
            value = value["height"]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 8192:
        wanted = "a shortest_edge" if edge else "a square"
        raise UserError(f"{where}: {key} is {value!r}; {wanted} of 1 to 8192 pixels is implemented")
    return value


def _resampling(value: Any, where: str) -> int:
    if isinstance(value, bool) or value not in range(6):
        raise UserError(f"{where}: resample is {value!r}; one of Pillow's 0 to 5 is needed")
    return int(value)


def _colours(value: Any, where: str, key: str) -> tuple[float, float, float]:
    numbers = isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(x, (int, float)) for x in value)
    if not numbers or (key == "image_std" and min(value) <= 0):
        raise UserError(
            f"{where}: {key} is {value!r}; three numbers{' above 0' if key == 'image_std' else ''} are needed"
        )
    return tuple(float(x) for x in value)


def _middle(image: np.ndarray, size: int) -> np.ndarray:
    """The middle ``size`` x ``size`` of ``[h, w, 3]``; black where the image is smaller."""
    height, width = image.shape[:2]
    if height < size or width < size:
        padded = np.zeros((max(size, height), max(size, width), 3), image.dtype)
        top, left = -(-(len(padded) - height) // 2), -(-(padded.shape[1] - width) // 2)
        padded[top : top + height, left : left + width] = image
        image, (height, width) = padded, padded.shape[:2]
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]
