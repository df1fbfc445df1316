"""Which family implements a ``model_type``, and a smaller encoder out of a larger one's layers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jasper_jax.encoders.encoder import Encoder, Family
from jasper_jax.encoders.hf_config import read_hf_config
from jasper_jax.errors import UserError, nearest

FAMILIES = {
    "bert": "jasper_jax.encoders.bert",
    "mpnet": "jasper_jax.encoders.mpnet",
}
"""``model_type`` of a config.json -> module whose ``FAMILY`` implements it."""

_PER_LAYER_KEYS = ("layer_types",)  # config lists with one entry per layer


def family_of(hf_config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a config, by ``model_type``. Code that a config points to (``auto_map``) is never run."""
    model_type = hf_config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return importlib.import_module(FAMILIES[model_type]).FAMILY
    listed = ", ".join(sorted(FAMILIES))
    if hf_config.get("auto_map"):
        raise UserError(
            f"{where}: model_type {model_type!r} is defined by code in the model folder (auto_map), which is never "
            f"run here; use a model of one of these families: {listed}"
        )
    hint = nearest(str(model_type), list(FAMILIES))
    raise UserError(f"{where}: model_type {model_type!r} is not implemented; families are {listed}{hint}")


def encoder_from_config(hf_config: Mapping[str, Any], where: str = "config.json") -> Encoder:
    """The encoder that a ``config.json`` describes (``{"model_type": "bert", ...}``); ``where`` names it in errors."""
    family = family_of(hf_config, where)
    config = family.config.from_hf(hf_config, where)
    return Encoder(family, config, json.dumps(dict(hf_config), sort_keys=True))


def encoder_from_folder(folder: str | Path) -> Encoder:
    """The encoder of a saved transformers model; its parameters come from ``weights.load_params``."""
    return encoder_from_config(read_hf_config(folder), str(Path(folder) / "config.json"))


def keep_layers(
    hf_config: Mapping[str, Any], layers: Sequence[int], where: str = "config.json"
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The config of an encoder made of ``layers`` of a larger one, and the same indices for ``load_params``.

    >>> config, layers = keep_layers(config, [0, 2, 4])
    >>> params = load_params(folder, encoder_from_config(config), layers=layers)
    """
    family = family_of(hf_config, where)
    total = encoder_from_config(hf_config, where).num_layers
    wrong = [i for i in layers if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < total]
    if wrong or not layers:
        raise UserError(
            f"layers {list(layers)} cannot be taken from {where}, which has {total} layers: "
            f"give one or more of 0 to {total - 1}"
        )
    reduced = {**hf_config, family.layers_key: len(layers)}
    for key in _PER_LAYER_KEYS:
        if isinstance(hf_config.get(key), (list, tuple)) and len(hf_config[key]) == total:
            reduced[key] = [hf_config[key][i] for i in layers]
    return reduced, tuple(layers)
