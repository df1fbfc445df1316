"""Settings in a model folder that make sentence-transformers or transformers read or run what is not in the folder.

They hand arguments of the folder's configs to their loaders: ``processor_kwargs`` of ``sentence_bert_config.json`` may
name a ``vocab_file``, ``model_kwargs`` a kernel of any repository to be run, ``vocab`` in ``tokenizer_config.json`` a
file of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import inside

_ARGUMENTS = frozenset(
    f"{part}_{name}" for part in ("model", "tokenizer", "processor", "config") for name in ("args", "kwargs")
)
_PLAIN = frozenset(
    ("dtype", "torch_dtype", "attn_implementation", "add_pooling_layer", "is_causal", "is_decoder", "use_cache")
    + ("use_memory_efficient_attention", "unpad_inputs", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code")
    + ("padding_side", "truncation_side", "model_max_length", "max_length", "do_lower_case", "use_fast")
    + ("fix_mistral_regex", "min_pixels", "max_pixels")
)
"""Arguments that name no file, repository or code; ``trust_remote_code`` is ignored there."""
_CONTENT = ("vocab", "merges", "gguf_file", "tokenizer_object")
"""Arguments of a tokenizer that may be a file's name in place of its content."""
_FILES = ("vocab_file", "merges_file", "spm_file", "source_spm", "target_spm", "sentencepiece_model_file")
"""Names of a tokenizer's files; many folders have those of the machine where they were made, which are ignored."""


def refuse_settings(where: str, folder: Path) -> None:
    """UserError, which names ``where`` the folder is asked for: a setting names a file, a repository or code."""
    for path in sorted(folder.rglob("sentence_*_config.json")):
        settings = read_object(path)
        odd = [key for key in ("tokenizer_name_or_path", "cache_dir") if settings.get(key) is not None]
        for name in sorted(_ARGUMENTS & settings.keys()):
            odd += [f"{name}.{key}" for key in _not_plain(settings[name])]
        _refuse(where, path, odd)
    for path in sorted(folder.rglob("tokenizer_config.json")):
        settings = read_object(path)
        odd = [key for key in _CONTENT if isinstance(settings.get(key), str)]
        _refuse(where, path, odd + [key for key in _FILES if _is_elsewhere(settings.get(key), path.parent)])


def _not_plain(arguments: Any) -> list[str]:
    """The arguments that may name something outside the folder."""
    if not isinstance(arguments, Mapping):
        return [] if arguments is None else ["*"]
    return [
        str(key)
        for key, value in arguments.items()
        if key not in _PLAIN
        or isinstance(value, Mapping | list)
        or (isinstance(value, str) and {"/", "\\"} & set(value))
    ]


def _is_elsewhere(name: Any, folder: Path) -> bool:
    """Whether ``name`` is that of a file which exists and is not in ``folder``."""
    return (
        isinstance(name, str)
        and "\0" not in name
        and os.path.lexists(name)
        and inside(folder, os.path.abspath(name)) is None
    )


def _refuse(where: str, path: Path, odd: list[str]) -> None:
    for key in odd[:1]:
        raise UserError(
            f"{where}: {path}: {key} may name a file, a repository or code outside the folder; remove it from the file,"
            " or embed the texts where you trust it and use jasper vectors import"
        )
