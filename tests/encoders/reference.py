"""The oracle of the encoder tests: tiny transformers models with every parameter random, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

FAMILIES = ("bert", "mpnet")
PAD = {"bert": 0, "mpnet": 1}
VOCAB, LONGEST = 60, 40


def torch_model(family: str, *, layers: int = 4, seed: int = 0, **settings) -> torch.nn.Module:
    """A model of ``layers`` layers, width 32, for texts of up to ``LONGEST`` tokens. Biases and norms are random
    too: with transformers' zeros and ones, a table that mixes them up would go unseen."""
    rows = LONGEST + 2 if family == "mpnet" else LONGEST
    config = transformers.AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=rows,
        **settings,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = name.endswith("LayerNorm.weight")
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.25) + float(is_scale))
    return model


def save(model: torch.nn.Module, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def ragged(family: str, side: str, *, rows: int = 6, length: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of texts of different lengths, the first one full, padded on ``side``."""
    rng = np.random.default_rng(seed)
    ids = np.full((rows, length), PAD[family], np.int32)
    mask = np.zeros((rows, length), np.int32)
    for row, n in enumerate([length, *rng.integers(1, length, rows - 1)]):
        where = slice(0, n) if side == "right" else slice(length - n, length)
        ids[row, where] = rng.integers(5, VOCAB, n)
        mask[row, where] = 1
    return ids, mask


def torch_states(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
