"""What is published of the models in the large recipes: enough to check and plan a run without downloading them.

Sizes are those of each model's ``config.json``. Training reads the real folder instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config, family_of


@dataclass(frozen=True)
class Published:
    """What the folder of a published model says."""

    config: Mapping[str, Any]
    """Its ``config.json``."""
    dims: Sequence[int] = ()
    """Of its ``2_Dense_{dim}`` folders; empty: the pooled vector is its output."""
    default_dim: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_length: int = 512


_KINDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
TEXT_MODELS, VISION_MODELS = (
    {name: Published(**model) for name, model in _KINDS[kind].items()} for kind in ("texts", "vision")
)
"""By hub id."""


def describe(name: str, causal: bool | None = None) -> ModelFolder | None:
    """The folder of a published model without its weights; None for other models. ``causal`` and UserError as in
    ``read_model_folder``."""
    model = TEXT_MODELS.get(name)
    if model is None:
        return None
    config = dict(model.config) if causal is None else {**model.config, "is_causal": causal}
    encoder = encoder_from_config(config, name)
    family = family_of(config, name)
    return ModelFolder(
        path=Path(name),
        encoder_path=Path(name),
        hf_config=encoder.hf_config,
        append_eos=family.append_eos,
        pooling=family.pooling(encoder.config),
        outputs=dict.fromkeys(model.dims, ()),
        default_dim=model.default_dim,
        normalize=False,
        prompts=dict(model.prompts),
        default_prompt_name=None,
        max_length=model.max_length,
        lower_case=False,
        described=True,
    )
