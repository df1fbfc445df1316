"""Vision encoders: normalised images -> a state per patch (and class token). ``FAMILIES`` are the implemented ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.encoders.hf_config import read_hf_config
from jasper_jax.encoders.tower import Params, Tower
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.vision import clip, dinov2, siglip
from jasper_jax.vision.vit import vision_part


@dataclass(frozen=True)
class VisionEncoder(Tower):
    """Images -> states (see :class:`~jasper_jax.encoders.tower.Tower`). ``config`` is a ``vit.VitConfig``; its
    ``family.ends`` have ``start(images [N, S, S, 3], drop)``."""

    @property
    def image_size(self) -> int:
        """S, pixels of a side."""
        return self.config.image_size

    @property
    def num_tokens(self) -> int:
        """T, the class token included."""
        return self.config.num_tokens

    def apply(
        self,
        params: Params,
        images: jax.Array,
        *,
        training: bool = False,
        compute_dtype: Any = jnp.float32,
        remat: str = "none",
    ) -> jax.Array:
        """``[N, S, S, 3]`` normalised images -> ``[N, T, C]`` in ``compute_dtype``: transformers'
        ``last_hidden_state``. ``training`` and ``remat`` as in ``Encoder.apply``. UserError for another image size."""
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise UserError(
                f"images are {list(images.shape[1:])}; this {self.family.model_type} encoder takes"
                f" {[self.image_size, self.image_size, 3]}"
            )
        return self._through(
            params,
            lambda ends, drop: ends.start(images, drop),
            training=training,
            compute_dtype=compute_dtype,
            remat=remat,
        )


FAMILIES = {
    "clip": clip.FAMILY,
    "clip_vision_model": clip.FAMILY,
    "dinov2": dinov2.FAMILY,
    "siglip": siglip.FAMILY,
    "siglip_vision_model": siglip.FAMILY,
}
"""``model_type`` of a config.json; that of a model with two towers means its vision tower. SigLIP 2 at a fixed
resolution is ``siglip``; ``siglip2`` (native resolutions) is not implemented."""


def vision_from_config(
    hf_config: Mapping[str, Any], where: str = "config.json", image_size: int | None = None
) -> VisionEncoder:
    """The vision encoder of a ``config.json``, at ``image_size`` pixels (None: its own). UserError: an unknown model
    type or setting, a size that is no multiple of the patch."""
    model_type = hf_config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UserError(
            f"{where}: model_type {model_type!r} is not an implemented vision encoder; families are"
            f" {', '.join(sorted(FAMILIES))}{nearest(str(model_type), list(FAMILIES))}"
        )
    part = {**vision_part(hf_config, family.model_type, where), "model_type": family.model_type}
    config = family.read_config(part, where).at_size(image_size, where)
    return VisionEncoder(family, config, json.dumps(part, sort_keys=True))


def vision_from_folder(folder: str | Path, image_size: int | None = None) -> VisionEncoder:
    """The vision encoder of a saved transformers model; its parameters come from ``encoders.weights.load_params``."""
    return vision_from_config(read_hf_config(folder), str(Path(folder) / "config.json"), image_size)
