"""The vision side of a recipe's student: its checkpoint's config, and its first parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.model_folder import VisionPart
from jasper_jax.encoders.published import VISION_MODELS
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import check_params, load_params
from jasper_jax.recipe.config import Vision
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import VisionEncoder, vision_from_config, vision_from_folder
from jasper_jax.vision.preprocess import Preprocessing, default_for
from jasper_jax.vision.processor_config import preprocessing_from_folder
from jasper_jax.vision.vision_model import IMAGE_TOKENS, VisionModel, make_vision_model


@dataclass(frozen=True)
class VisionFolder:
    """A vision model at the size it runs at. ``path`` None: only its published config is known."""

    path: Path | None
    encoder: VisionEncoder
    preprocessing: Preprocessing


def read_vision(settings: Vision, path: Path) -> VisionFolder:
    """The folder of ``student.vision.model``. UserError: an unknown family, a size that does not fit."""
    encoder = vision_from_folder(path, settings.image_size)
    preprocessing = preprocessing_from_folder(path, encoder.family.model_type)
    return VisionFolder(path, encoder, preprocessing.with_size(encoder.image_size))


def described_vision(settings: Vision) -> VisionFolder | None:
    """A vision model's published config (``encoders.published``), or None."""
    model = VISION_MODELS.get(settings.model)
    if model is None:
        return None
    encoder = vision_from_config(model.config, settings.model, settings.image_size)
    preprocessing = default_for(encoder.family.model_type).with_size(encoder.image_size)
    return VisionFolder(None, encoder, preprocessing)


def check_vision(settings: Vision, folder: VisionFolder) -> None:
    """Raise what ``load_vision`` would raise, reading headers only."""
    if folder.path is not None and settings.weights == "pretrained":
        check_params(folder.path, folder.encoder)


def vision_model_of(
    settings: Vision, folder: VisionFolder, tokenizer: Tokenizer | None, encoder: Encoder, max_length: int
) -> VisionModel:
    """The student's vision side. Without a ``tokenizer`` (a model known by its config) the image tokens follow the
    word table's rows, and there are no special tokens. UserError: an image exceeds ``max_length``."""
    return make_vision_model(
        folder.encoder,
        folder.preprocessing,
        tokens=settings.tokens,
        width=encoder.hidden_size,
        projector=settings.projector,
        tokenizer=tokenizer or encoder.vocab_size,
        max_length=max_length,
        remat=settings.remat,
    )


def load_vision(settings: Vision, folder: VisionFolder, vision_model: VisionModel, seed: int) -> dict[str, Any]:
    """``{"vision": ..., "projector": ...}``: the checkpoint's weights, or random ones if the recipe says so; a random
    projector (``projector_init: ridge`` is solved when the stage begins)."""
    params = vision_model.init(seed)
    if settings.weights == "pretrained":
        if folder.path is None:
            raise UserError(f"student.vision.model: {settings.model} was not fetched, only its config is known")
        params["vision"] = load_params(folder.path, folder.encoder, dtype=jnp.float32)
    return params


def load_part(
    part: VisionPart, tokenizer: Tokenizer, encoder: Encoder, max_length: int, dtype: str = "float32"
) -> tuple[VisionModel, dict[str, Any]]:
    """The vision side of a model folder, and its parameters. UserError: other image tokens than Jasper's, or none in
    the tokenizer; weights that do not fit."""
    where = f"{part.path / 'config.json'}: vision_config"
    tokens = (part.start_token, part.image_token, part.end_token)
    if tokens != IMAGE_TOKENS or any(tokenizer.token_id(token) is None for token in tokens):
        raise UserError(f"{part.path}: image tokens are {', '.join(tokens)}; expected {', '.join(IMAGE_TOKENS)}")
    preprocessing = preprocessing_from_folder(part.path, vision_from_config(part.hf_config, where).family.model_type)
    vision = vision_from_config(part.hf_config, where, preprocessing.size)
    vision_model = make_vision_model(
        vision,
        preprocessing,
        tokens=part.tokens,
        width=encoder.hidden_size,
        projector=part.projection,
        tokenizer=tokenizer,
        max_length=max_length,
    )
    params: dict[str, Any] = {"vision": load_params(part.path, vision, dtype=dtype)}
    if part.projector is not None:
        kernel, bias = part.projector
        params["projector"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return vision_model, params
