"""Texts -> token ids, by the tokenizer of a model folder; truncated texts are counted.

The ``tokenizers`` package is used directly: importing transformers' fast classes would import PyTorch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from jasper_jax.encoders.tokenizer_config import configured_backend, length_limit
from jasper_jax.encoders.tokenizer_file import one_line_panics
from jasper_jax.runtime.errors import UserError


class Tokenizer:
    """``max_length`` includes special tokens; None: no limit. ``truncated`` counts the texts cut so far.
    ``source`` is its name in errors."""

    def __init__(
        self, backend: Backend, *, max_length: int | None = None, pad_id: int = 0, source: str = "the tokenizer"
    ):
        if max_length is not None and max_length <= backend.num_special_tokens_to_add(False):
            raise UserError(
                f"max_length is {max_length}; expected more than the {backend.num_special_tokens_to_add(False)} "
                "special tokens of each text"
            )
        self._backend = Backend.from_str(backend.to_str())
        self._backend.no_padding()
        if max_length is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(max_length)
        self.max_length = max_length
        self.pad_id = pad_id
        self.source = source
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

        ``max_length`` defaults to the folder's ``model_max_length``, ``pad_id`` to that of its ``pad_token``.
        ``lower_case`` lower-cases the text first (sentence-transformers' ``do_lower_case``). ``append_eos`` ends every
        text with the folder's ``eos_token``; None leaves that to ``tokenizer.json``. UserError: a missing or malformed
        file.
        """
        folder = Path(folder)
        backend, own_pad_id = configured_backend(folder, lower_case=lower_case, append_eos=append_eos)
        return cls(
            backend,
            max_length=length_limit(folder) if max_length is None else max_length,
            pad_id=(own_pad_id if pad_id is None else pad_id) or 0,
            source=str(folder / "tokenizer.json"),
        )

    def with_max_length(self, max_length: int | None) -> Tokenizer:
        """The same tokenizer with another limit; ``truncated`` starts at 0."""
        return Tokenizer(self._backend, max_length=max_length, pad_id=self.pad_id, source=self.source)

    def with_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these special tokens; new ones are appended."""
        backend = Backend.from_str(self._backend.to_str())
        backend.add_special_tokens(list(tokens))
        return Tokenizer(backend, max_length=self.max_length, pad_id=self.pad_id, source=self.source)

    @property
    def roles(self) -> dict[str, str]:
        """``{"pad_token": ...}``, the one role that every tokenizer needs to make batches."""
        pad = self._backend.id_to_token(self.pad_id)
        return {} if pad is None else {"pad_token": pad}

    def added_tokens(self) -> dict[str, dict[str, Any]]:
        """The tokens beside the model's vocabulary, as ``added_tokens_decoder`` of tokenizer_config.json."""
        flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        tokens = self._backend.get_added_tokens_decoder()
        return {str(i): {flag: getattr(token, flag) for flag in flags} for i, token in sorted(tokens.items())}

    def token_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._backend.token_to_id(token)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ragged int32 ids of each text, with special tokens."""
        with one_line_panics(self.source):
            encodings = self._backend.encode_batch_fast(_encodable(texts), add_special_tokens=True)
        self.truncated += sum(1 for encoding in encodings if encoding.overflowing)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """The lengths of ``encode(texts)``, int32 [n]."""
        with one_line_panics(self.source):
            encodings = self._backend.encode_batch_fast(_encodable(texts))
        return np.fromiter(map(len, encodings), np.int32, len(texts))

    def prompt_length(self, prompt: str) -> int:
        """Tokens of ``prompt`` at the start of a text, with the special tokens before it."""
        if not prompt:
            return 0
        with one_line_panics(self.source):
            encoding = self._backend.encode(prompt)
        return len(encoding) - (encoding.special_tokens_mask[-1] if len(encoding) else 0)

    def prompt_lengths(self, prompts: Sequence[str]) -> np.ndarray:
        """:meth:`prompt_length` of each, int32 [n]."""
        lengths = {prompt: self.prompt_length(prompt) for prompt in set(prompts)}
        return np.array([lengths[prompt] for prompt in prompts], np.int32)

    def fingerprint(self) -> str:
        """sha256 of the tokenizer, its settings and ``max_length``."""
        return hashlib.sha256(f"{self._backend.to_str()}\n{self.pad_id}".encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` without truncation; the length limit is a setting of the model."""
        backend = Backend.from_str(self._backend.to_str())
        backend.no_truncation()
        # backend.save raises a bare Exception when the disk is full.
        (Path(folder) / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")

    def check_vocabulary(self, rows: int) -> None:
        """UserError: the tokenizer has ids beyond an embedding table of ``rows``."""
        if self.vocab_size > rows:
            last = self._backend.id_to_token(self.vocab_size - 1)
            raise UserError(
                f"{self.source}: has {self.vocab_size} tokens, the encoder's embedding table {rows} rows:"
                f" take both from one model folder (the last token is {last!r})"
            )


def _encodable(texts: Sequence[str]) -> list[str]:
    """UserError: a text that UTF-8 cannot encode, which the tokenizer would refuse with no hint of the cause."""
    texts = list(texts)
    for i, text in enumerate(texts):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"texts[{i}]: {text[error.start]!r} at character {error.start} is half of a surrogate pair, not a"
                    " character; replace it first: text.encode('utf-8', 'replace').decode()"
                ) from None
    return texts
