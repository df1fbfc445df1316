"""Loading a tokenizer.json that may have been made to harm: to fill the memory, to run for ever, to end the process.

The ``tokenizers`` library follows the file: chained replacements multiply a text, a regular expression may backtrack
without end, and where memory is short the library ends the process. A file with such parts is tried in another process
first (``tokenizer_trial``), once: the verdict is kept in the user's cache under the file's sha256. Texts that no trial
has can still make an expression slow; an error of the library is one line then, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer as Backend

from jasper_jax.encoders.hf_config import refuse_pointer
from jasper_jax.encoders.tokenizer_trial import GROWTH, MEMORY, SECONDS, parts_of
from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.children import python_module
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.user_cache import private_cache

LARGEST = 1 << 28
"""Bytes; those of models with 256,000 tokens have an eighth."""
HIGHEST_ID = (1 << 24) - 1
"""Of a token; vocabularies have up to a few hundred thousand."""
_WALL = 300
"""Seconds until a trial is given up, which says nothing of the file."""
PLAIN = frozenset(
    "Sequence BertNormalizer Strip StripAccents NFC NFD NFKC NFKD Nmt Lowercase Prepend ByteLevel BertPreTokenizer"
    " Whitespace WhitespaceSplit Metaspace Punctuation Digits UnicodeScripts CharDelimiterSplit FixedLength"
    " BertProcessing RobertaProcessing TemplateProcessing".split()
)
"""Steps without a pattern of the file: a text becomes a few times longer at most, in time proportional to it."""
_MOST_PIECES = 16
"""Of a template, which may repeat the text."""
VERSION = 1
"""Of the trial: another one tries files again."""
_VERDICTS: dict[str, str | None] = {}


def load_backend(path: Path) -> Backend:
    """The tokenizer of a file, without padding. UserError: missing, malformed, or harmful."""
    try:
        data = read_regular(path, LARGEST)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    refuse_harmful(data, path)
    try:
        with one_line_panics(str(path)):
            backend = Backend.from_buffer(data)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (tokenizers raises nothing more precise)
        refuse_pointer(path)
        raise UserError(f"{path}: not a tokenizer file ({error}); copy it again") from None
    backend.no_padding()
    return backend


@contextlib.contextmanager
def one_line_panics(source: str) -> Iterator[None]:
    """Within the block a panic of the library, which no ``except Exception`` catches, is a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{source}: the tokenizers library failed with it ({first_line(error)[:200]}); use another tokenizer"
        ) from None


def refuse_harmful(data: bytes, path: Path) -> None:
    """UserError: a tokenizer.json whose trial ended badly."""
    try:
        tree = parse_json(data)
    except ValueError as error:  # the library may still accept it: it skips what it does not know
        refuse_pointer(path)
        raise UserError(f"{path}: not a tokenizer file ({error}); copy it again") from None
    if not isinstance(tree, Mapping):
        return
    if (highest := _highest_id(tree)) > HIGHEST_ID:
        raise UserError(f"{path}: has the token id {highest}, at most {HIGHEST_ID} is read; use another tokenizer")
    steps = [tree.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")]
    if _is_plain(steps):
        return
    if fault := _growth(tree.get("normalizer")) or verdict(data):
        raise UserError(f"{path}: {fault}; use another tokenizer")


def _highest_id(tree: Mapping[str, Any]) -> int:
    """The highest id of the vocabulary; the library lists all ids up to it that have no token."""
    model = tree.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else ()
    return max((number for number in ids if isinstance(number, int)), default=0)


def _is_plain(steps: Any) -> bool:
    for part in parts_of(steps):
        named = part.get("type")
        if isinstance(named, str) and named not in PLAIN:
            return False
        pieces = part.get("single")
        if "pattern" in part or (isinstance(pieces, list) and len(pieces) > _MOST_PIECES):
            return False
    return True


def _growth(normalizer: Any) -> str | None:
    """What is wrong with a chain of replacements: the product of what each may make of a character."""
    factor = 1.0
    for part in parts_of(normalizer):
        pattern, content = part.get("pattern"), part.get("content")
        if isinstance(content, str) and isinstance(pattern, Mapping):
            literal = pattern.get("String")
            factor *= max(1.0, len(content) / len(literal) if isinstance(literal, str) and literal else len(content))
        if factor > GROWTH:
            return f"its normalizer may make {factor:,.0f} characters of one"
    return None


def verdict(data: bytes) -> str | None:
    """What the trial of a tokenizer found, None: nothing; from the cache, where it was tried before."""
    name = f"{hashlib.sha256(data).hexdigest()}-{tokenizers.__version__}-{VERSION}.json"
    if name not in _VERDICTS:
        _VERDICTS[name] = _remembered(data, name)
    return _VERDICTS[name]


def _remembered(data: bytes, name: str) -> str | None:
    try:
        memo = private_cache("tokenizers") / name
    except (OSError, RuntimeError):  # no home, or none that can be written: tried in every process
        return _tried(data)[0]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return parse_json(memo.read_bytes())["fault"]
    fault, certain = _tried(data)
    if certain:
        with contextlib.suppress(OSError):
            write_atomic(memo, json.dumps({"fault": fault}) + "\n")
    return fault


def _tried(data: bytes) -> tuple[str | None, bool]:
    """What the other process found, and whether it will always find that."""
    command = python_module("jasper_jax.encoders.tokenizer_trial")
    quiet = {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, env={**os.environ, **quiet}, timeout=_WALL, check=False
        )
    except subprocess.TimeoutExpired:
        return f"encoding short texts with it took more than {_WALL} s", False
    if done.returncode:
        return (
            f"encoding short texts with it ends the process, or takes more than {SECONDS} s or {MEMORY >> 30} GiB"
        ), True
    return parse_json(done.stdout.splitlines()[-1]), True
