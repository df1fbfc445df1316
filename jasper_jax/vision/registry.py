"""Which family implements a vision encoder's ``model_type``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jasper_jax.encoders.hf_config import read_hf_config
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.vision import clip, dinov2, siglip
from jasper_jax.vision.encoder import VisionEncoder
from jasper_jax.vision.vit import vision_part

FAMILIES = {
    "clip": clip.FAMILY,
    "clip_vision_model": clip.FAMILY,
    "dinov2": dinov2.FAMILY,
    "siglip": siglip.FAMILY,
    "siglip_vision_model": siglip.FAMILY,
}
"""``model_type`` of a config.json; one that names two towers stands for its vision tower. SigLIP 2 at a fixed
resolution calls itself ``siglip``; ``siglip2`` is its form with native resolutions, which is not here."""


def vision_from_config(
    hf_config: Mapping[str, Any], where: str = "config.json", image_size: int | None = None
) -> VisionEncoder:
    """The vision encoder that a ``config.json`` describes, run at ``image_size`` pixels (None: its own).

    Raises:
      UserError: an unknown model type, a setting that is not implemented, a size that its patches do not divide.
    """
    model_type = hf_config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UserError(
            f"{where}: model_type {model_type!r} is no vision encoder that is implemented; families are"
            f" {', '.join(sorted(FAMILIES))}{nearest(str(model_type), list(FAMILIES))}"
        )
    part = {**vision_part(hf_config, family.model_type, where), "model_type": family.model_type}
    config = family.read_config(part, where).at_size(image_size, where)
    return VisionEncoder(family, config, json.dumps(part, sort_keys=True))


def vision_from_folder(folder: str | Path, image_size: int | None = None) -> VisionEncoder:
    """The vision encoder of a saved transformers model; its parameters come from ``encoders.weights.load_params``."""
    return vision_from_config(read_hf_config(folder), str(Path(folder) / "config.json"), image_size)
