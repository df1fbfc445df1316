"""The family of a ``model_type``, and encoders made of some layers of a larger one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jasper_jax.encoders.encoder import Encoder, Family
from jasper_jax.encoders.hf_config import read_hf_config
from jasper_jax.runtime.errors import UserError, nearest

FAMILIES = {
    "bert": "bert",
    "gte": "gte",
    "llama": "decoder:LLAMA",
    "mistral": "decoder:MISTRAL",
    "modernbert": "modernbert",
    "mpnet": "mpnet",
    "new": "gte",  # gte's name on the hub, before transformers had it
    "nomic_bert": "nomic_bert",
    "nvembed": "nvembed",
    "qwen2": "decoder:QWEN2",
    "qwen3": "decoder:QWEN3",
    "roberta": "roberta:ROBERTA",
    "xlm-roberta": "roberta:XLM_ROBERTA",
}
"""``model_type`` of a config.json -> the module whose ``FAMILY`` (or the name after the colon) implements it."""


def family_of(hf_config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a config, by ``model_type``. Custom code (``auto_map``) is never run."""
    model_type = hf_config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        module, _, name = FAMILIES[model_type].partition(":")
        return getattr(importlib.import_module(f"jasper_jax.encoders.{module}"), name or "FAMILY")
    listed = ", ".join(sorted(FAMILIES))
    if hf_config.get("auto_map"):
        raise UserError(
            f"{where}: model_type {model_type!r} is defined by code in the model folder (auto_map), which is never "
            f"run; use a model of one of these families: {listed}. It can still be a teacher: embed the texts where "
            "its code may run, then import the vectors with jasper vectors import"
        )
    hint = nearest(str(model_type), list(FAMILIES))
    raise UserError(f"{where}: model_type {model_type!r} is not implemented; families are {listed}{hint}")


def encoder_from_config(hf_config: Mapping[str, Any], where: str = "config.json") -> Encoder:
    """The encoder that a ``config.json`` describes (``{"model_type": "bert", ...}``); ``where`` names it in errors."""
    family = family_of(hf_config, where)
    if family.translate is not None:
        hf_config = family.translate(hf_config, where)
    return Encoder(family, family.read_config(hf_config, where), json.dumps(dict(hf_config), sort_keys=True))


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
    encoder = encoder_from_config(hf_config, where)
    total = encoder.num_layers
    wrong = [i for i in layers if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < total]
    if wrong or not layers:
        raise UserError(
            f"layers {list(layers)} cannot be taken from {where}, which has {total} layers: "
            f"give one or more of 0 to {total - 1}"
        )
    special = {w.first_layer for w in encoder.family.weights(encoder.config)} - {0}
    if special and (layers[0] != 0 or 0 in layers[1:]):
        raise UserError(
            f"layers {list(layers)} cannot be taken from {where}: the first layer of {encoder.family.model_type} "
            "differs from the rest; begin the list with 0, and name it once"
        )
    reduced = {**encoder.hf_config, "num_hidden_layers": len(layers)}
    kinds = getattr(encoder.config, "layer_types", ())
    if len(set(kinds)) > 1 or "layer_types" in reduced:  # else derived from a layer's new number
        reduced["layer_types"] = [kinds[i] for i in layers]
    return reduced, tuple(layers)
