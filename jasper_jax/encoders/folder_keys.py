"""The keys of a model folder's small config files: those that are read, those that must have one value, harmless ones.

A key in none of the three may change vectors, so it is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.runtime.errors import UserError


class Keys(NamedTuple):
    """The keys of one kind of file; ``fixed``: the values implemented, of which null is always one."""

    read: tuple[str, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = {}
    harmless: tuple[str, ...] = ()


_NAMES = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_ARGUMENTS = ({}, {"trust_remote_code": True})

MODEL = Keys(
    ("prompts", "default_prompt_name", "truncate_dim"),
    {"model_type": ("SentenceTransformer",)},
    ("__version__", "similarity_fn_name", "requirements"),
)
"""``config_sentence_transformers.json``."""
TRANSFORMER = Keys(
    ("max_seq_length", "do_lower_case"),
    {
        "transformer_task": ("feature-extraction",),
        "module_output_name": ("token_embeddings",),
        "modality_config": ({}, _TEXT),
        "processing_kwargs": ({},),
        "query_length": (),
        "document_length": (),
        "query_expansion": (),
        "tokenizer_name_or_path": (),
        **dict.fromkeys(("model_args", "tokenizer_args", "config_args"), _ARGUMENTS),
        **dict.fromkeys(("model_kwargs", "processor_kwargs", "config_kwargs"), _ARGUMENTS),
    },
    ("unpad_inputs", "backend", "cache_dir"),
)
"""``sentence_bert_config.json``."""
POOLING = Keys(
    ("pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"),
)
"""Of a Pooling step; keys that begin with ``pooling_mode_`` are its modes."""
DENSE = Keys(
    ("in_features", "out_features", "bias", "activation_function"),
    {**_NAMES, "use_residual": (False,)},
)
"""Of a Dense step."""
NORMALIZE = Keys((), _NAMES)
"""Of a Normalize step."""


def check_keys(config: Mapping[str, Any], keys: Keys, file: Path, prefix: str | None = None) -> None:
    """UserError: a key of ``config`` that is not known, or a value that is not implemented.

    ``prefix``: keys that begin with it are known.
    """
    for key, value in config.items():
        if key in keys.read or key in keys.harmless or (prefix is not None and key.startswith(prefix)):
            continue
        if key not in keys.fixed:
            known = ", ".join((*keys.read, *keys.fixed, *keys.harmless))
            raise UserError(
                f"{file}: {key} is not a known key, and may change vectors; known are {known}. If vectors do not depend"
                " on it, remove it from the file"
            )
        allowed = keys.fixed[key]
        if value is not None and value not in allowed:
            only = " or ".join(repr(item) for item in (*allowed, None))
            raise UserError(f"{file}: {key} is {value!r}; only {only} is implemented")
