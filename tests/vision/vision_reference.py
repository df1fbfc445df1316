"""The oracle of the vision tests: tiny transformers models with every parameter random, saved as checkpoints."""

from __future__ import annotations

import numpy as np
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 22,  # as SigLIP's 384 by 14: not a whole number of patches
    "patch_size": 5,
}
CASES: dict[str, tuple[str, dict]] = {
    "siglip": ("siglip_vision_model", {}),
    "clip": ("clip_vision_model", {}),
    "dinov2": ("dinov2", {}),
    "dinov2-gated": ("dinov2", {"use_swiglu_ffn": True}),
}
UNUSED = {
    "siglip": ("head.",),
    "clip": ("post_layernorm.",),
    "dinov2": ("embeddings.mask_token",),
    "dinov2-gated": ("embeddings.mask_token",),
}
"""Tensors that token states do not depend on."""


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15
            is_scale = ("norm" in name or "layrnorm" in name or "lambda" in name) and not name.endswith("bias")
            parameter.copy_(torch.randn(parameter.shape) * scale + float(is_scale))
    return model.eval()


def torch_model(case: str) -> torch.nn.Module:
    model_type, own = CASES[case]
    sizes = {key: value for key, value in SIZES.items() if not (model_type == "dinov2" and key == "intermediate_size")}
    config = transformers.AutoConfig.for_model(model_type, **sizes, **own)
    return randomise(transformers.AutoModel.from_config(config))


def pixels(size: int, n: int = 2, seed: int = 0) -> np.ndarray:
    """``[N, S, S, 3]`` as an encoder reads it."""
    return np.random.default_rng(seed).normal(size=(n, size, size, 3)).astype(np.float32)


def run(model: torch.nn.Module, images: np.ndarray, case: str) -> torch.Tensor:
    """``last_hidden_state``, positions interpolated where the size is not the model's."""
    options = {} if case.startswith("dinov2") else {"interpolate_pos_encoding": images.shape[1] != SIZES["image_size"]}
    dtype = next(model.parameters()).dtype
    return model(torch.tensor(images.transpose(0, 3, 1, 2).copy(), dtype=dtype), **options).last_hidden_state
