"""Strict reading of a Hugging Face ``config.json``: a setting that a family does not implement is an error."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.shown import redacted

_POINTER = b"version https://git-lfs"
LARGEST = 2**31 - 1
"""The largest size, count or token id: arrays are indexed with 32 bits."""
MOST_LAYERS = 1024
CODE_KEYS = frozenset(
    ("auto_map", "custom_pipelines", "attn_implementation", "_attn_implementation")
    + ("allow_all_kernels", "use_kernels", "kernel_config")
)
"""Keys that name code, or let a loader fetch and run it."""
_PLACES = frozenset(
    ("_name_or_path", "name_or_path", "cache_dir", "tokenizer_name_or_path")
    + ("vocab", "merges", "vocab_file", "merges_file", "tokenizer_file", "gguf_file")
)
_SECRETS = frozenset(("token", "auth_token", "use_auth_token", "hf_token", "access_token", "api_key", "password"))
"""With which a loader fetched the model; some versions kept it among the settings."""
_PLACE = re.compile(
    r"([A-Za-z]:[\\/]|[\\/~])[\w.~ -]+[\\/].*|(~|\.\.?)[\\/].+|\\\\[\w.-]+\\.+|(?!https?://)[\w+.-]+://\S+", re.DOTALL
)
"""A path of the machine where the file was written, or an address that is not everybody's."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""What half of a surrogate pair begins with in JSON."""


def read_json(path: Path) -> Any:
    """The parsed file. UserError: missing, malformed, not Unicode, or a link out of its folder."""
    try:
        data = read_record_bytes(file_inside(path))
        value = parse_json(data)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair, which libraries do not take
        return value
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a saved Hugging Face model") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy the file again") from None
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: has half of a surrogate pair, which is not Unicode text; copy the file again"
        ) from None
    except ValueError as error:
        refuse_pointer(path)
        raise UserError(f"{path}: not valid JSON ({error}); copy the file again") from None


def refuse_pointer(path: Path) -> None:
    """UserError: the file only points to its content in Git LFS, as after a clone without it."""
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise UserError(
            f"{path}: is a pointer of Git LFS, not the file itself; run git lfs pull in {path.parent}, or download it"
        )


def read_object(path: Path) -> dict[str, Any]:
    """``read_json`` of a file that must hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, got a {type(value).__name__}; copy the file again")
    return value


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a model folder."""
    return read_object(Path(folder) / "config.json")


def to_publish(config: Any) -> Any:
    """A config without what must not go on with it: names of code, places of whoever wrote it, and credentials."""
    if isinstance(config, dict):
        dropped = CODE_KEYS | _PLACES | _SECRETS
        return {
            key: to_publish(value) for key, value in config.items() if key not in dropped and not _is_private(value)
        }
    return [to_publish(value) for value in config if not _is_private(value)] if isinstance(config, list) else config


def _is_private(value: Any) -> bool:
    """Whether a setting is a place, or has a secret that :func:`redacted` finds."""
    return isinstance(value, str) and (_PLACE.fullmatch(value) is not None or redacted(value) != value)


@dataclass(frozen=True)
class Reader:
    """Typed access to a config. Every error names the file, the key, the value and the allowed values."""

    values: Mapping[str, Any]
    family: str
    where: str = "config.json"

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int, least: int = 1, most: int = LARGEST) -> int:
        """A whole number of ``least`` to ``most``."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"{self.where}: {key} is {value!r}; expected a whole number of {least} to {most}")
        return value

    def layers(self, default: int) -> int:
        """``num_hidden_layers``, of which lists are made before the weights can contradict it."""
        return self.integer("num_hidden_layers", default, most=MOST_LAYERS)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{self.where}: {key} is {value!r}; expected a positive number")
        return float(value)

    def needed(self, key: str) -> float:
        """A positive number that has no default."""
        if self.values.get(key) is None:
            raise UserError(f"{self.where}: {key} is missing; expected a positive number")
        return self.number(key, 1.0)

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {key} is {value!r}; expected true or false")
        return value

    def optional(self, key: str, default: int | None) -> int | None:
        """A whole number of at least 1, or null for none; ``default`` where the key is absent."""
        if key in self.values and self.values[key] is None:
            return None
        return self.integer(key, default or 1) if default is not None or key in self.values else None

    def padding(self, default: int = 0) -> int:
        """``pad_token_id``; where it is null or -1 any token serves, since padding is masked."""
        value = self.values.get("pad_token_id")
        return default if value is None or value == -1 else self.integer("pad_token_id", default, least=0)

    def choice(self, key: str, allowed: Sequence[Any], default: Any) -> Any:
        """One of ``allowed``, the values that are implemented."""
        value = self._get(key, default)
        if value not in allowed:
            listed = ", ".join(repr(item) for item in allowed)
            raise UserError(
                f"{self.where}: {key} is {value!r}; the {self.family} encoder implements {listed}: "
                "use a model without that setting"
            )
        return value

    def require(self, key: str, value: Any) -> None:
        """``key`` must be absent or equal to ``value``."""
        self.choice(key, [value], value)

    def heads(self, hidden_size: int, default: int) -> int:
        """``num_attention_heads``, which must divide the hidden size."""
        heads = self.integer("num_attention_heads", default)
        if hidden_size % heads:
            raise UserError(f"{self.where}: num_attention_heads {heads} does not divide hidden_size {hidden_size}")
        return heads
