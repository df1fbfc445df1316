"""The two kinds of text, query and passage, and a model's prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.runtime.errors import UserError

PROMPT_NAMES = {"query": ("query", "s2p_query"), "passage": ("passage", "document", "corpus")}
"""Kind -> names of its prompt; the first non-empty one is used (sentence-transformers writes an empty ``query`` and
``document`` into folders that have neither)."""
MODEL_CONFIG = "config_sentence_transformers.json"
KINDS = tuple(PROMPT_NAMES)


def prompt_of(prompts: Mapping[str, str], kind: str) -> str:
    """The prompt for ``kind`` among a model's named prompts (see ``PROMPT_NAMES``), or an empty string."""
    return next((prompts[name] for name in PROMPT_NAMES.get(kind, (kind,)) if prompts.get(name)), "")


def named_prompt(prompts: Mapping[str, str], kind: str | None, default_name: str | None) -> str:
    """As :func:`prompt_of`, or an empty string; None: the prompt of ``default_name``. UserError: neither a kind nor a
    name in ``prompts``."""
    if kind is None:
        return prompts.get(default_name or "", "")
    if kind in PROMPT_NAMES or kind in prompts:
        return prompt_of(prompts, kind)
    names = ", ".join(dict.fromkeys((*PROMPT_NAMES, *prompts)))
    raise UserError(f"kind is {kind!r}; this model has {names}")


def prompts_of_texts(
    kind: str | None | Sequence[str | None], count: int, prompt: Callable[[str | None], str]
) -> list[str]:
    """The prompt of each of ``count`` texts, whose kinds are one for all or one per text; ``prompt``: kind -> prompt.
    UserError: something else than kinds, or another number of them."""
    if kind is None or isinstance(kind, str):
        return [prompt(kind)] * count
    if not isinstance(kind, (Sequence, np.ndarray)):
        raise UserError(f"kind is {kind!r}; expected the name of a prompt, a list of one per text, or None")
    if wrong := [one for one in kind if one is not None and not isinstance(one, str)]:
        raise UserError(f"kind has {wrong[0]!r}; expected the name of a prompt or None for each text")
    if len(kind) != count:
        raise UserError(f"{len(kind)} kinds for {count} texts; give one kind for all, or one per text")
    prompts = {text_kind: prompt(text_kind) for text_kind in set(kind)}
    return [prompts[text_kind] for text_kind in kind]


def replace_prompts(prompts: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """``prompts`` with those ``given`` by kind, empty ones too, instead of what a kind has by any of its names."""
    replaced = {name for kind in given for name in PROMPT_NAMES[kind]}
    return {**{name: text for name, text in prompts.items() if name not in replaced}, **given}


def read_model_config(path: Path) -> dict[str, Any]:
    """``config_sentence_transformers.json``; absent: no settings."""
    file = path / MODEL_CONFIG
    return read_object(file) if file.is_file() else {}


def read_prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """Prompts by name, and the default name, in ``config_sentence_transformers.json``."""
    file = path / MODEL_CONFIG
    config = read_model_config(path)
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{file}: prompts is {prompts!r}; expected an object of name and text")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise UserError(f"{file}: default_prompt_name is {default!r}; expected one of {', '.join(prompts) or 'none'}")
    return dict(prompts), default
