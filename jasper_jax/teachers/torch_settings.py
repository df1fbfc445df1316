"""Settings in a model folder that make sentence-transformers or transformers read or run what is not in the folder.

They hand arguments of the folder's configs to their loaders: ``processor_kwargs`` of ``sentence_bert_config.json`` may
name a ``vocab_file``, ``model_kwargs`` a kernel of any repository to be run, ``vocab`` in ``tokenizer_config.json`` a
file of this machine. A module of the type ``SentenceTransformer`` loads the folder again as that folder's settings say,
with ``trust_remote_code`` among them. A processor may name a model elsewhere, ``modality_config`` a method to be
called. And where transformers finds code that nobody has allowed or forbidden, it asks on the terminal whether to run
it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jasper_jax.encoders.hf_config import read_json, read_object
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


MODULE_TYPE = re.compile(
    r"sentence_transformers(\.\w+)*\.(models|modules)(\.\w+)*\."
    r"(Transformer|MLMTransformer|CLIPModel|StaticEmbedding|BoW|WordEmbeddings|WordWeights|CNN|LSTM|Pooling"
    r"|WeightedLayerPooling|Dense|LayerNorm|Dropout|Normalize|Router|Asym"
    r"|WhitespaceTokenizer|PhraseTokenizer|TransformersTokenizerWrapper)",
    re.ASCII,
)
"""The types of sentence-transformers' own modules and tokenizers of words; what else its packages have is called as it
is found."""
_IMPLEMENTATION = "_implementation"
"""The end of keys of a ``config.json`` whose value may be a repository with native code: attn_implementation."""
_ELSEWHERE = frozenset(("audio_tokenizer_name_or_path", "repo_path", "repo_or_path"))
"""Keys of a processor that name a folder or a repository to load from."""
_CLASSES = {
    "tokenizer_class": re.compile(r"[\w.]*(Tokenizer|Backend)\w*", re.ASCII),
    "processor_class": re.compile(r"\w*(Processor|Tokenizer|FeatureExtractor)\w*", re.ASCII),
    **dict.fromkeys(
        ("image_processor_type", "video_processor_type", "feature_extractor_type"),
        re.compile(r"\w*(Processor|FeatureExtractor)\w*", re.ASCII),
    ),
}
"""Key of a config -> the classes of transformers that it is for. It may name any, such as the retriever of RAG, which
loads data sets, and pickles where the environment has ``TRUST_REMOTE_CODE``."""
_METHOD = re.compile(r"forward|get_\w+_features", re.ASCII)
"""The methods of a model that make vectors; ``modality_config`` may name any, and it is called."""
_ACTIVATION = re.compile(r"torch\.nn(\.\w+)+|(?!torch\.).*", re.ASCII | re.DOTALL)
"""Of a Dense module. Another module of PyTorch would be imported, whatever that does; of other packages
sentence-transformers imports none."""


def refuse_settings(where: str, folder: Path, *, modules: bool = True) -> None:
    """UserError, which names ``where`` the folder is asked for: a setting names a file, a repository or code.
    ``modules``: whether its list of modules is followed."""
    for path, kind in module_types(folder) if modules else ():
        if not isinstance(kind, str) or not MODULE_TYPE.fullmatch(kind):
            raise UserError(
                f"{where}: {path}: the type {kind!r} is no module of sentence-transformers, and code in a model folder"
                " is never run; embed the texts where you trust it and use jasper vectors import"
            )
    for path in sorted(folder.rglob("sentence_*_config.json")):
        settings = read_object(path)
        odd = [key for key in ("tokenizer_name_or_path", "cache_dir") if settings.get(key) is not None]
        for name in sorted(_ARGUMENTS & settings.keys()):
            odd += [f"{name}.{key}" for key in _not_plain(settings[name])]
        _refuse(where, path, odd + _other_methods(settings.get("modality_config")))
    for path in sorted(folder.rglob("tokenizer_config.json")):
        settings = read_object(path)
        odd = [key for key in _CONTENT if isinstance(settings.get(key), str)]
        _refuse(where, path, odd + [key for key in _FILES if _is_elsewhere(settings.get(key), path.parent)])
    for path in sorted(folder.rglob("*config.json")):
        settings = read_json(path)
        activation = settings.get("activation_function") if isinstance(settings, Mapping) else None
        odd = ["activation_function"] if isinstance(activation, str) and not _ACTIVATION.fullmatch(activation) else []
        _refuse(where, path, [*odd, *_named_elsewhere(settings)])


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Within it, transformers refuses code in a folder without asking on the terminal whether to run it: an answer may
    stand there for another question, or come from ``yes |``."""
    from transformers import dynamic_module_utils

    seconds, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def _other_methods(modalities: Any) -> list[str]:
    """The entries of ``modality_config`` that name a method which makes no vectors."""
    entries = modalities.items() if isinstance(modalities, Mapping) else ()
    methods = {f"modality_config.{name}": entry.get("method") for name, entry in entries if isinstance(entry, Mapping)}
    return [key for key, method in methods.items() if not (isinstance(method, str) and _METHOD.fullmatch(method))]


def _named_elsewhere(config: Any) -> Iterator[str]:
    """The keys at which a config names a repository for the computation of attention, a model elsewhere, or a class of
    another kind than the key's, at any depth."""
    waiting = [("", config)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(key if key.endswith(_IMPLEMENTATION) else str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, str) and (
            key in _ELSEWHERE
            or (key.endswith(_IMPLEMENTATION) and "/" in value)
            or (key in _CLASSES and not _CLASSES[key].fullmatch(value))
        ):
            yield key


def module_types(folder: Path) -> Iterator[tuple[Path, Any]]:
    """The types of modules in the lists of a model and of its Routers, and of tokenizers, with the file of each."""
    for path in sorted(folder.rglob("*.json")):
        if path.name == "modules.json":
            modules = read_json(path)
            listed = modules if isinstance(modules, list) else []
            yield from ((path, module.get("type")) for module in listed if isinstance(module, dict))
        elif path.name == "wordembedding_config.json":
            yield path, read_object(path).get("tokenizer_class")
        elif path.name in ("router_config.json", "config.json"):  # the latter of older Routers
            types = read_object(path).get("types")
            yield from ((path, kind) for kind in types.values()) if isinstance(types, dict) else ()


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
