"""Strict reading of ``preprocessor_config.json``: a setting that changes the pixels is implemented or an error."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jasper_jax.encoders.hf_config import Reader, read_object
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.preprocess import KINDS, Preprocessing, default_for

logger = logging.getLogger(__name__)

CONFIG = "preprocessor_config.json"
_SAME_PIXELS = frozenset(
    "image_processor_type feature_extractor_type processor_class do_convert_rgb data_format input_data_format device "
    "return_tensors disable_grouping default_to_square image_seq_length pad_size padding_mode fill_value "
    "auto_map _valid_processor_keys _processor_class transformers_version".split()
)
_READ = frozenset(
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std "
    "do_pad".split()
)


def read_preprocessing(values: Mapping[str, Any], where: str) -> Preprocessing:
    """From a ``preprocessor_config.json``; absent keys take the defaults of its class. UserError: another class, an
    unknown key, images that are not square."""
    kind = _kind(values, where)
    default, read = KINDS[kind], Reader(values, kind, where)
    unknown = sorted(key for key in set(values) - _SAME_PIXELS - _READ if values[key] is not None)
    if unknown:
        raise UserError(
            f"{where}: {', '.join(unknown)} not implemented for {kind}; those read are {', '.join(sorted(_READ))}"
        )
    read.require("do_resize", True)
    read.require("do_pad", False)
    normalised = read.flag("do_normalize", True)
    cropped = read.flag("do_center_crop", default.crop is not None)
    resize, exact = _size(values, default, where)
    if not exact and not cropped:
        raise UserError(
            f"{where}: size is the shortest edge and do_center_crop is false, so images would not be square; "
            'give size as {"height": ..., "width": ...}, or crop'
        )
    return Preprocessing(
        kind=kind,
        resize=resize,
        crop=_square(values.get("crop_size") or default.crop or 224, "crop_size", where) if cropped else None,
        resample=read.choice("resample", tuple(range(6)), default.resample),
        rescale_factor=read.number("rescale_factor", 1 / 255) if read.flag("do_rescale", True) else 1.0,
        mean=_colours(values, "image_mean", default.mean, where) if normalised else (0.0, 0.0, 0.0),
        std=_colours(values, "image_std", default.std, where, least=1e-12) if normalised else (1.0, 1.0, 1.0),
        exact=cropped and exact,
    )


def _kind(values: Mapping[str, Any], where: str) -> str:
    named = values.get("image_processor_type") or values.get("feature_extractor_type")
    name = str(named)
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    name = name.replace("FeatureExtractor", "ImageProcessor")
    if name not in KINDS:
        raise UserError(f"{where}: image_processor_type is {named!r}; {', '.join(KINDS)} are implemented")
    return name


def _size(values: Mapping[str, Any], default: Preprocessing, where: str) -> tuple[int, bool]:
    """(pixels, True for each side or False for the shortest edge); a bare number is the shortest edge."""
    size = values.get("size")
    if size is None:
        return default.resize, default.crop is None
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return _pixels(size["shortest_edge"], "size", where), False
    if isinstance(size, Mapping):
        return _square(size, "size", where), True
    return _pixels(size, "size", where), False


def _square(value: Any, key: str, where: str) -> int:
    """A number, or an object of equal height and width."""
    if isinstance(value, Mapping) and set(value) == {"height", "width"} and value["height"] == value["width"]:
        value = value["height"]
    return _pixels(value, key, where)


def _pixels(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16384:
        raise UserError(
            f"{where}: {key} is {value!r}; expected pixels (1 to 16384), or an object of equal height and width"
        )
    return value


def _colours(
    values: Mapping[str, Any], key: str, default: tuple[float, float, float], where: str, least: float = -math.inf
) -> tuple[float, float, float]:
    """Numbers for red, green and blue; one number counts for all three."""
    value = values.get(key)
    if value is None:
        return default
    three = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    good = len(three) == 3 and all(
        isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) and x >= least for x in three
    )
    if not good:
        positive = "positive " if least > 0 else ""
        raise UserError(f"{where}: {key} is {value!r}; expected three {positive}numbers")
    red, green, blue = (float(x) for x in three)
    return red, green, blue


def preprocessing_from_folder(folder: str | Path, model_type: str) -> Preprocessing:
    """The preprocessing of a saved model.

    Without ``preprocessor_config.json``, and without an image part in ``processor_config.json``, it is that of the
    published checkpoints of ``model_type``, with a warning.
    """
    path, joint = Path(folder) / CONFIG, Path(folder) / "processor_config.json"
    if path.is_file():
        return read_preprocessing(read_object(path), str(path))
    if joint.is_file():
        part: Mapping[str, Any] | None = read_object(joint).get("image_processor")
        if isinstance(part, Mapping):
            return read_preprocessing(part, f"{joint}: image_processor")
    preprocessing = default_for(model_type)
    logger.warning("%s has no %s; images are processed as for published %s models", folder, CONFIG, model_type)
    return preprocessing
