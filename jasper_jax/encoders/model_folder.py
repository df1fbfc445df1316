"""A model folder as a typed record: its steps, its prompts, its settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.encoders.folder_keys import MODEL, TRANSFORMER, check_keys
from jasper_jax.encoders.hf_config import Reader, read_object
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.prompts import MODEL_CONFIG, read_model_config, read_prompts


class Dense(NamedTuple):
    """``activation(x @ kernel + bias)``; kernel [in, out] and bias [out] (or None), float32."""

    kernel: np.ndarray
    bias: np.ndarray | None
    activation: str


@dataclass(frozen=True)
class VisionPart:
    """The vision side of a folder in the public Jasper layout; its weights begin with ``vision_model.``."""

    path: Path
    hf_config: dict[str, Any]
    tokens: int  # per image
    start_token: str
    image_token: str
    end_token: str
    projector: tuple[np.ndarray, np.ndarray] | None  # kernel [C, D] and bias [D], float32
    projection: str = "none"  # as student.vision.projector; joint: [n·C, n·D] and [n·D]

    def fits(self, max_length: int) -> bool:
        """Whether an image fits in ``max_length`` tokens: its own, its start and end, and two special tokens."""
        return self.tokens + 4 <= max_length


@dataclass(frozen=True)
class ModelFolder:
    """What a folder says, except the encoder's weights and the tokenizer."""

    path: Path
    encoder_path: Path  # of config.json, weights and tokenizer.json
    hf_config: dict[str, Any]
    pooling: Pooling
    outputs: dict[int, tuple[Dense, ...]]  # output dimension -> Dense steps; empty: the pooled vector itself
    default_dim: int | None  # the one modules.json names; None: the pooled vector
    normalize: bool  # ends with a Normalize step
    prompts: dict[str, str]
    default_prompt_name: str | None
    max_length: int | None  # None: the tokenizer's own
    lower_case: bool
    append_eos: bool  # the model's own code appends the end token, its tokenizer.json does not
    vision: VisionPart | None = None
    described: bool = False  # from ``encoders.published``: there is no folder and no weights


def read_settings(encoder_path: Path) -> dict[str, Any]:
    """``sentence_bert_config.json`` (older folders name it after another architecture); absent: no settings."""
    files = sorted(encoder_path.glob("sentence_*_config.json"))
    if not files:
        return {}
    preferred = encoder_path / "sentence_bert_config.json"
    file = preferred if preferred in files else files[0]
    settings = read_object(file)
    check_keys(settings, TRANSFORMER, file)
    Reader(settings, "text", str(file)).optional("max_seq_length", None)
    return settings


def text_settings(path: Path, encoder_path: Path) -> dict[str, Any]:
    """``ModelFolder``'s fields of prompts, length and case."""
    settings = read_settings(encoder_path)
    check_keys(read_model_config(path), MODEL, path / MODEL_CONFIG)
    prompts, default_prompt_name = read_prompts(path)
    return {
        "prompts": prompts,
        "default_prompt_name": default_prompt_name,
        "max_length": settings.get("max_seq_length"),
        "lower_case": bool(settings.get("do_lower_case", False)),
    }
