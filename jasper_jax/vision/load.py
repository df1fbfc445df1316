"""The vision side of a recipe's student: what its checkpoint says, and its first parameters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.model_folder import VisionPart
from jasper_jax.encoders.published import VISION
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import check_params, load_params
from jasper_jax.recipe.config import Vision
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.encoder import VisionEncoder
from jasper_jax.vision.preprocess import Preprocessing, default_for
from jasper_jax.vision.processor_config import preprocessing_from_folder
from jasper_jax.vision.registry import vision_from_config, vision_from_folder
from jasper_jax.vision.vision_model import IMAGE_TOKENS, VisionModel, make_vision_model


@dataclass(frozen=True)
class VisionFolder:
    """A vision model at the size it is to be run at. ``path`` None: only what is published about it is known."""

    path: Path | None
    encoder: VisionEncoder
    preprocessing: Preprocessing


def read_vision(settings: Vision, path: Path) -> VisionFolder:
    """The folder of ``student.vision.model``. UserError: a family that is not implemented, a size that does not fit."""
    encoder = vision_from_folder(path, settings.image_size)
    preprocessing = preprocessing_from_folder(path, encoder.family.model_type)
    return VisionFolder(path, encoder, preprocessing.with_size(encoder.image_size))


def described_vision(settings: Vision) -> VisionFolder | None:
    """What is published about a vision model (``encoders.published``); None: nothing is known here."""
    config = VISION.get(settings.model)
    if config is None:
        return None
    encoder = vision_from_config(config, settings.model, settings.image_size)
    preprocessing = default_for(encoder.family.model_type).with_size(encoder.image_size)
    return VisionFolder(None, encoder, preprocessing)


def check_vision(settings: Vision, folder: VisionFolder) -> None:
    """``load_vision`` without its result: raises what it would raise, from the headers alone."""
    if folder.path is not None and settings.weights == "pretrained":
        check_params(folder.path, folder.encoder)


def vision_model_of(
    settings: Vision, folder: VisionFolder, tokenizer: Tokenizer | None, encoder: Encoder, max_length: int
) -> VisionModel:
    """The student's vision side. Without a ``tokenizer`` (a model that is only described) the three tokens are taken to
    follow the word table's rows, and no special token to stand around an input.

    Raises:
      UserError: an image does not fit the student's longest input.
    """
    if tokenizer is not None:
        return make_vision_model(
            folder.encoder,
            folder.preprocessing,
            tokens=settings.tokens,
            width=encoder.hidden_size,
            projector=settings.projector,
            tokenizer=tokenizer,
            max_length=max_length,
            remat=settings.remat,
        )
    start = encoder.vocab_size
    return VisionModel(
        encoder=folder.encoder,
        preprocessing=folder.preprocessing,
        tokens=settings.tokens,
        width=encoder.hidden_size,
        projector=settings.projector,
        start_id=start,
        image_id=start + 1,
        end_id=start + 2,
        alone=(start, *[start + 1] * settings.tokens, start + 2),
        remat=settings.remat,
    )


def load_vision(settings: Vision, folder: VisionFolder, vision_model: VisionModel, seed: int) -> dict[str, Any]:
    """``{"vision": ..., "projector": ...}``: the checkpoint's weights unless the recipe wants random ones; the
    projector random (``projector_init: ridge`` is solved when the stage begins)."""
    params = vision_model.init(seed)
    if settings.weights == "pretrained":
        if folder.path is None:
            raise UserError(f"student.vision.model: {settings.model} is not here, only its sizes are known")
        params["vision"] = load_params(folder.path, folder.encoder, dtype=jnp.float32)
    return params


def load_part(
    part: VisionPart, tokenizer: Tokenizer, encoder: Encoder, max_length: int, dtype: str = "float32"
) -> tuple[VisionModel, dict[str, Any]]:
    """The vision side of a model folder, and its parameters.

    Raises:
      UserError: other tokens than Jasper's, or none in the tokenizer; weights that do not fit.
    """
    where = f"{part.path / 'config.json'}: vision_config"
    given = (part.start_token, part.image_token, part.end_token)
    if given != IMAGE_TOKENS or any(tokenizer.token_id(token) is None for token in given):
        raise UserError(f"{part.path}: its image tokens are {', '.join(given)}; {', '.join(IMAGE_TOKENS)} are needed")
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
