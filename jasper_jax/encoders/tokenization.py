"""Texts -> token ids, by the ``tokenizer.json`` of a model folder, cut to a length and counted when cut.

This is the tokenizer that transformers' fast classes wrap, used without them: importing those imports PyTorch
wherever it is installed. What transformers sets on top of the file (special tokens, lower case) is set here.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import say

_UNLIMITED = 10**9  # tokenizer_config.json writes 1e30 for "no limit"
_SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class Tokenizer:
    """Wraps a ``tokenizers`` tokenizer.

    ``max_length`` counts special tokens; None cuts nothing. ``truncated`` counts the texts cut so far.
    """

    def __init__(self, backend: Backend, *, max_length: int | None = None, pad_id: int = 0):
        if max_length is not None and max_length <= backend.num_special_tokens_to_add(False):
            raise UserError(
                f"max_length is {max_length}; more than the {backend.num_special_tokens_to_add(False)} special "
                "tokens of each text is needed"
            )
        self._backend = Backend.from_str(backend.to_str())
        self._backend.no_padding()
        if max_length is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(max_length)
        self.max_length = max_length
        self.pad_id = pad_id
        self.truncated = 0
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def load(
        cls,
        folder: str | Path,
        max_length: int | None = None,
        *,
        lower_case: bool = False,
        pad_id: int | None = None,
        append_eos: bool | None = None,
    ) -> Tokenizer:
        """From ``tokenizer.json`` (and ``tokenizer_config.json``) of ``folder``.

        ``max_length`` defaults to the folder's ``model_max_length``. ``lower_case`` lowers the text first
        (``do_lower_case`` of sentence-transformers). ``append_eos`` ends every text with the folder's ``eos_token``,
        where ``tokenizer.json`` does not do so itself; None leaves that to the file. ``pad_id`` defaults to the id of
        the folder's ``pad_token``.
        UserError when the file is missing or malformed.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f'{path}: no such file; make it once where transformers is installed: python -c "from transformers '
                f"import AutoTokenizer as T; T.from_pretrained('{folder}').save_pretrained('{folder}')\""
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # noqa: BLE001  (tokenizers raises nothing more precise)
            raise UserError(f"{path}: not a tokenizer file ({error}); copy it again") from None
        config_path = folder / "tokenizer_config.json"
        config = read_object(config_path) if config_path.is_file() else {}
        _apply_config(backend, config, config_path)
        if lower_case:
            _lower_first(backend)
        backend = _ended_with_eos(backend, config, append_eos, config_path)
        limit = config.get("model_max_length")
        if max_length is None and isinstance(limit, (int, float)) and 1 <= limit < _UNLIMITED:
            max_length = int(limit)
        if pad_id is None:
            pad_id = backend.token_to_id(_content(config, "pad_token", config_path) or "[PAD]")
        return cls(backend, max_length=max_length, pad_id=pad_id or 0)

    def with_max_length(self, max_length: int | None) -> Tokenizer:
        """The same tokenizer, cutting elsewhere, its count at zero."""
        return Tokenizer(self._backend, max_length=max_length, pad_id=self.pad_id)

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these special tokens; those that it lacks come after all others."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens(list(tokens))
        return Tokenizer(backend, max_length=self.max_length, pad_id=self.pad_id)

    def token_id(self, token: str) -> int | None:
        """The id of a token, None where there is no such token."""
        return self._backend.token_to_id(token)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ragged int32 ids, special tokens included, in the order of ``texts``."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=True)
        self.truncated += sum(1 for encoding in encodings if encoding.overflowing)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text as ``encode`` would give them (cut, special tokens included); int32 [n]."""
        return np.fromiter((len(e) for e in self._backend.encode_batch_fast(list(texts))), np.int32, len(texts))

    def prompt_length(self, prompt: str) -> int:
        """Tokens that ``prompt`` takes at the head of a text, special tokens before it counted, none after it."""
        if not prompt:
            return 0
        encoding = self._backend.encode(prompt)
        return len(encoding) - (encoding.special_tokens_mask[-1] if len(encoding) else 0)

    def fingerprint(self) -> str:
        """sha256 of everything that decides the ids: the tokenizer, its settings and ``max_length``."""
        return hashlib.sha256(f"{self._backend.to_str()}\n{self.pad_id}".encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, without truncation: the length limit is the model's setting."""
        backend = Backend.from_str(self._backend.to_str())
        backend.no_truncation()
        # Not backend.save, which raises a bare Exception where the disk is full.
        (Path(folder) / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")

    def check_vocabulary(self, rows: int) -> None:
        """UserError when the tokenizer has ids beyond an embedding table of ``rows``."""
        if self.vocab_size > rows:
            raise UserError(
                f"the tokenizer has {self.vocab_size} tokens, the encoder's embedding table {rows} rows: they do not "
                "belong together; take both from one model folder"
            )


def _content(config: Mapping[str, Any], key: str, path: Path) -> str | None:
    """A special token in tokenizer_config.json: a string or an object with ``content``."""
    token = config.get(key)
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is not None and not isinstance(content, str):
        raise UserError(f"{path}: {key} is {token!r}; a string, or an object with content, is needed")
    return content


def _apply_config(backend: Backend, config: Mapping[str, Any], path: Path) -> None:
    """What transformers changes by ``tokenizer_config.json``: special tokens are never split, and BERT's normalizer.

    ``add_bos_token`` and ``add_eos_token`` are not acted on, as transformers 5 does not where there is a
    ``tokenizer.json``: that file's own template decides.
    """
    named = [_content(config, key, path) for key in _SPECIAL]
    backend.add_special_tokens([token for token in named if token and backend.token_to_id(token) is not None])
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for key, name in _BERT_SETTINGS.items():
            if key in config:
                if not isinstance(config[key], bool | None):
                    raise UserError(f"{path}: {key} is {config[key]!r}; true or false is needed")
                setattr(normalizer, name, config[key])
        backend.normalizer = normalizer


def _ended_with_eos(backend: Backend, config: Mapping[str, Any], wanted: bool | None, path: Path) -> Backend:
    """A tokenizer that appends the end token to every text, where that is ``wanted`` and not what the file does."""
    eos = _content(config, "eos_token", path)
    number = None if eos is None else backend.token_to_id(eos)
    if wanted and number is None:
        raise UserError(f"{path}: eos_token is {eos!r}, no token of tokenizer.json; set append_eos: false")
    if number is None or backend.encode("a").ids[-1:] == [number]:
        return backend
    if not wanted:
        if wanted is None and config.get("add_eos_token") is True:
            _say_no_eos(path, str(eos))
        return backend
    # In the file's own words: two templates one after the other are not implemented in tokenizers.
    tree = json.loads(backend.to_str())
    given = tree["post_processor"]
    steps = given["processors"] if given and given["type"] == "Sequence" else [given] if given else []
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


@functools.cache  # once a folder, however often it is opened
def _say_no_eos(path: Path, eos: str) -> None:
    say(
        f"{path}: asks for add_eos_token, which tokenizer.json does not do; texts do not end with {eos} here, as in"
        " transformers 5. If the model was trained with it, set append_eos: true."
    )


def _lower_first(backend: Backend) -> None:
    steps: list[Any] = [normalizers.Lowercase()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)
