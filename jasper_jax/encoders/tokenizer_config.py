"""A tokenizer as transformers makes it of a model folder: ``tokenizer.json``, and the settings on top of that file.

Those are of ``tokenizer_config.json`` (special tokens, lower case, the token at the end) and of transformers' class,
which may replace what the file says. What is not implemented is refused by name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.encoders.tokenizer_file import load_backend
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.shell import python_command

_CREATE = "from transformers import AutoTokenizer as T; T.from_pretrained({}).save_pretrained({})"
_UNLIMITED = 10**9  # tokenizer_config.json writes 1e30 for "no limit"
_SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_BERT_SETTINGS = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
"""Key in tokenizer_config.json -> the argument of BERT's normalizer, and transformers' default."""
_BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
"""transformers' classes that make BERT's normalizer from ``_BERT_SETTINGS``, whatever tokenizer.json says."""
_BERT_ENDS = (models.WordPiece, ("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
_ENDS: dict[str, tuple[type, tuple[str, str], tuple[str, str]]] = {
    **dict.fromkeys(_BERT_CLASSES, _BERT_ENDS),
    "MPNetTokenizer": (models.WordPiece, ("cls_token", "<s>"), ("sep_token", "</s>")),
    "RobertaTokenizer": (models.BPE, ("cls_token", "<s>"), ("sep_token", "</s>")),
    "XLMRobertaTokenizer": (models.Unigram, ("bos_token", "<s>"), ("eos_token", "</s>")),
}
"""transformers' class -> the model it is of, and the first and last token of a text: key of the config and default."""
_CLASS_OF = {"bert": "BertTokenizer", "nomic_bert": "BertTokenizer", "mpnet": "MPNetTokenizer"}
"""``model_type`` -> the class where tokenizer_config.json names none."""


def configured_backend(
    folder: Path, *, lower_case: bool = False, append_eos: bool | None = None
) -> tuple[Backend, int | None]:
    """The tokenizer of ``folder``, and the id of its ``pad_token`` if there is one.

    ``lower_case`` and ``append_eos`` as ``Tokenizer.load`` takes them. UserError: a missing or malformed file.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; create it once where transformers is installed:"
            f" {python_command(_CREATE, folder, folder)}"
        )
    backend = load_backend(file_inside(path))
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path) if config_path.is_file() else {}
    _apply_config(backend, config, config_path)
    kind = _class_of(config, folder)
    if kind in _BERT_CLASSES and isinstance(backend.model, models.WordPiece):
        _bert_normalizer(backend, config, config_path)
    if kind in _ENDS and isinstance(backend.model, _ENDS[kind][0]):
        _ends(backend, kind, config, config_path)
    if lower_case:
        _lower_first(backend)
    backend = _ended_with_eos(backend, config, append_eos, config_path)
    return backend, backend.token_to_id(_content(config, "pad_token", config_path) or "[PAD]")


def length_limit(folder: Path) -> int | None:
    """``model_max_length`` in ``tokenizer_config.json``; None: no limit. UserError: not a positive number."""
    file = folder / "tokenizer_config.json"
    limit = read_object(file).get("model_max_length") if file.is_file() else None
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 1:
        raise UserError(f"{file}: model_max_length is {limit!r}; expected a number of tokens, or null for no limit")
    return None if limit >= _UNLIMITED else int(limit)


def _content(config: Mapping[str, Any], key: str, path: Path) -> str | None:
    """A special token in tokenizer_config.json: a string or an object with ``content``."""
    token = config.get(key)
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is not None and not isinstance(content, str):
        raise UserError(f"{path}: {key} is {token!r}; expected a string or an object with content")
    return content


def _apply_config(backend: Backend, config: Mapping[str, Any], path: Path) -> None:
    """Apply ``tokenizer_config.json`` as transformers does: special tokens are never split.

    ``add_bos_token`` and ``add_eos_token`` are ignored, as in transformers 5: ``tokenizer.json`` decides.
    """
    named = [_content(config, key, path) for key in _SPECIAL]
    backend.add_special_tokens([token for token in named if token and backend.token_to_id(token) is not None])
    stored = (backend.truncation or {}).get("direction")  # transformers takes it where the config has none
    given = {"truncation_side": stored, **{key: value for key, value in config.items() if value is not None}}
    for key, value in (("truncation_side", "right"), ("split_special_tokens", False)):
        if given.get(key) not in (None, value):
            where = path if config.get(key) is not None else f"{path.with_name('tokenizer.json')}, truncation.direction"
            raise UserError(f"{where}: {key} is {given[key]!r}; only {json.dumps(value)} is implemented")
    unknown = [token for token in _added(config) if backend.token_to_id(token) is None]
    if unknown:
        raise UserError(
            f"{path}: adds the token {unknown[0]!r}, which tokenizer.json lacks; save the tokenizer again where"
            " transformers is installed, so that both files agree"
        )


def _added(config: Mapping[str, Any]) -> list[str]:
    """The tokens that tokenizer_config.json adds to the vocabulary."""
    listed = config.get("added_tokens_decoder")
    tokens = list(listed.values()) if isinstance(listed, Mapping) else []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(key) or []
        tokens += list(extra.values()) if isinstance(extra, Mapping) else extra if isinstance(extra, list) else []
    contents = [token.get("content") if isinstance(token, Mapping) else token for token in tokens]
    return [content for content in contents if isinstance(content, str)]


def _class_of(config: Mapping[str, Any], folder: Path) -> str | None:
    """The name of transformers' tokenizer class, without ``Fast``."""
    name, model = config.get("tokenizer_class"), folder / "config.json"
    if name is None and model.is_file():
        hf_config = read_object(model)
        name = hf_config.get("tokenizer_class") or _CLASS_OF.get(str(hf_config.get("model_type")))
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _bert_normalizer(backend: Backend, config: Mapping[str, Any], path: Path) -> None:
    """Make the normalizer and the words that transformers' BERT classes make: they ignore those of ``tokenizer.json``,
    and lower-case unless ``do_lower_case`` is false."""
    arguments = {}
    for key, (argument, default) in _BERT_SETTINGS.items():
        arguments[argument] = value = config.get(key, default)
        if not isinstance(value, bool | None):
            raise UserError(f"{path}: {key} is {value!r}; expected true or false")
    backend.normalizer = normalizers.BertNormalizer(clean_text=True, **arguments)
    if not isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer):
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _ends(backend: Backend, kind: str, config: Mapping[str, Any], path: Path) -> None:
    """Put around a text the special tokens that transformers' class ``kind`` puts there, whatever ``tokenizer.json``
    says."""
    _, *roles = _ENDS[kind]
    tokens = [_content(config, key, path) or token for key, token in roles]
    numbers = [backend.token_to_id(token) for token in tokens]
    if backend.encode("").ids == numbers:
        return
    for token, number in zip(tokens, numbers, strict=True):
        if number is None:
            raise UserError(
                f"{path}: a {kind} puts {token!r} around a text, which tokenizer.json lacks; copy both again"
            )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{tokens[0]} $A {tokens[1]}", special_tokens=list(zip(tokens, numbers, strict=True))
    )


def _ended_with_eos(backend: Backend, config: Mapping[str, Any], wanted: bool | None, path: Path) -> Backend:
    """The tokenizer, changed to append the end token to every text if that is ``wanted`` and the file does not."""
    eos = _content(config, "eos_token", path)
    number = None if eos is None else backend.token_to_id(eos)
    if wanted and number is None:
        raise UserError(
            f"{path}: eos_token is {eos!r}, which tokenizer.json lacks, but every text is to end with it; name the end"
            " token of tokenizer.json there, or remove append_eos where you set it"
        )
    if number is None or backend.encode("a").ids[-1:] == [number]:
        return backend
    if not wanted:
        if wanted is None and config.get("add_eos_token") is True:
            _say_no_eos(path, str(eos))
        return backend
    # Edit the existing template: tokenizers does not support two in sequence.
    tree = json.loads(backend.to_str())
    old = tree["post_processor"]
    steps = old["processors"] if old and old["type"] == "Sequence" else [old] if old else []
    end = {"SpecialToken": {"id": eos, "type_id": 0}}
    template = next((step for step in steps if step["type"] == "TemplateProcessing"), None)
    if template is None:
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        template = {"type": "TemplateProcessing", "single": [first], "pair": [first, second], "special_tokens": {}}
        steps.append(template)
    template["single"].append(end)
    template["pair"].append(end)
    template["special_tokens"][eos] = {"id": eos, "ids": [number], "tokens": [eos]}
    tree["post_processor"] = {"type": "Sequence", "processors": steps}
    return Backend.from_str(json.dumps(tree))


@functools.cache  # once per folder
def _say_no_eos(path: Path, eos: str) -> None:
    say(
        f"{path}: sets add_eos_token, but tokenizer.json does not append it; texts do not end with {eos}, as in"
        " transformers 5. If the model was trained with it, and is a teacher, set its append_eos: true."
    )


def _lower_first(backend: Backend) -> None:
    """Lower-case before the normalizer, unless it does (``Lowercase``), as sentence-transformers does."""
    normalizer: Any = backend.normalizer
    chain = isinstance(normalizer, normalizers.Sequence)
    steps = [*cast(Any, normalizer)] if chain else [normalizer] if normalizer else []
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
