"""The least versions of the libraries that read an export right, and how a folder makes earlier ones refuse it.

A bidirectional decoder (``is_causal: false``) runs causally, without a word, in transformers before 5.2. Such a folder
names its modules as sentence-transformers 5.4 does, which earlier ones cannot import; ``requirements`` in
config_sentence_transformers.json has later ones compare versions; its tokenizer class is unknown to transformers 4; and
transformers 5.0 and 5.1 end in a TypeError at its rotary positions. ``docs/results/versions.md`` has what each version
did with each kind of export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jasper_jax.encoders.encoder import Encoder

OLD_TYPES: dict[str, str] = dict.fromkeys(("Transformer", "Pooling", "Dense", "Normalize", "Router"), "models")
"""Kind of module -> its package within sentence_transformers, as all versions import it."""
_BASE, _OWN = "base.modules", "sentence_transformer.modules"
NEW_TYPES: dict[str, str] = {**dict.fromkeys(OLD_TYPES, _BASE), "Pooling": _OWN}
"""As sentence-transformers imports it from 5.4 on."""
_REASON = "earlier versions run this bidirectional model causally"


def requirements(encoder: Encoder) -> dict[str, Any]:
    """``requirements`` of config_sentence_transformers.json; empty where no version is known to read it wrong."""
    if encoder.family.has_causal and not encoder.config.causal:
        return {"transformers": {"specifier": ">=5.2", "reason": _REASON}}
    return {}


def module_types(encoder: Encoder) -> dict[str, str]:
    """Kind of module -> its type in the modules.json of an export of ``encoder``."""
    types = NEW_TYPES if requirements(encoder) else OLD_TYPES
    return {kind: f"sentence_transformers.{package}.{kind}" for kind, package in types.items()}


def least_versions(encoder: Encoder) -> dict[str, str]:
    """Package -> the least version that reads an export of ``encoder`` right, of those tried."""
    if requirements(encoder):
        return {"sentence-transformers": "5.4", "transformers": "5.2"}
    return LEAST.get(encoder.family.model_type, {"sentence-transformers": "3.4.1", "transformers": "4.48"})


def refused_before_5_2(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` that says the same to transformers 5.2 and later, and ends in a TypeError before.

    From 5.2 on a ``partial_rotary_factor`` of null counts as absent. 5.0 and 5.1 multiply a head by it, but
    not for plain rotary positions: so these are written as linear scaling by 1, which is the same.
    """
    theta = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    rope = {**theta, **(config.get("rope_parameters") or config.get("rope_scaling") or {})}
    if rope.get("rope_type", rope.get("type", "default")) == "default":
        rope |= {"rope_type": "linear", "factor": 1.0}
    return {**config, "rope_parameters": rope, "partial_rotary_factor": None}


def with_old_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the settings of rotary positions by their names before transformers 5 too, which else
    takes its defaults."""
    rope, old = config.get("rope_parameters"), {}
    if isinstance(rope, Mapping) and "rope_theta" in rope:
        old["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            old["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    elif isinstance(rope, Mapping):  # one for each kind of layer: ModernBERT
        for kind, name in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
            if isinstance(inner := rope.get(kind), Mapping) and "rope_theta" in inner:
                old[name] = inner["rope_theta"]
    return {**old, **config}


LEAST = {
    "gte": {"sentence-transformers": "6.2", "transformers": "5.24"},
    "nomic_bert": {"sentence-transformers": "6.2", "transformers": "5.24"},
    "qwen3": {"sentence-transformers": "4.1", "transformers": "4.51"},
}
"""Model types that transformers 4.48 does not have."""
