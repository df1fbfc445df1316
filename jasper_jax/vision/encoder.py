"""A vision encoder: normalised images -> a state per patch (and class token), by the machinery of text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jasper_jax.encoders.stack import Params
from jasper_jax.encoders.tower import Tower
from jasper_jax.runtime.errors import UserError


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
        remat: bool = False,
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
