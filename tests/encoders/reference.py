"""The oracle of the encoder tests: tiny transformers models with every parameter random, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from tests.families import CASES, VARIANTS

transformers.utils.logging.disable_progress_bar()

VOCAB, LONGEST = 60, 40

FAMILIES = tuple(CASES)


def torch_model(case: str, *, layers: int = 4, seed: int = 0, **settings) -> torch.nn.Module:
    """A model of ``layers`` layers, width 32, for texts of up to ``LONGEST`` tokens. Biases and norms are random
    too: with transformers' zeros and ones, a table that mixes them up would go unseen."""
    model_type, own = {**CASES, **VARIANTS}[case]
    rows = LONGEST + 2 if model_type in ("mpnet", "roberta", "xlm-roberta") else LONGEST
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=rows,
        **{**own, **settings},
    )
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config).eval()
    gated = model_type not in ("bert", "mpnet", "roberta", "xlm-roberta")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15 if gated else 0.25  # a gate is a product: it amplifies
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape) * scale + float(is_scale))
    return model


def pad_id(case: str) -> int:
    """The padding token of a case's texts."""
    model_type, own = {**CASES, **VARIANTS}[case]
    return own.get("pad_token_id", 1 if model_type == "mpnet" else 0)


def save(model: torch.nn.Module, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def ragged(case: str, side: str, *, rows: int = 6, length: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of texts of different lengths, the first one full, padded on ``side``, or on both in turn."""
    rng = np.random.default_rng(seed)
    ids = np.full((rows, length), pad_id(case), np.int32)
    mask = np.zeros((rows, length), np.int32)
    for row, n in enumerate([length, *rng.integers(1, length, rows - 1)]):
        right = row % 2 if side == "mixed" else side == "right"
        where = slice(0, n) if right else slice(length - n, length)
        ids[row, where] = rng.integers(5, VOCAB, n)
        mask[row, where] = 1
    return ids, mask


def torch_states(model: torch.nn.Module, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).last_hidden_state.numpy()
