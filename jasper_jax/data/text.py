"""A text of the store, and the hash by which two are the same."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from jasper_jax.data.augment import normalised_bytes


class Text(NamedTuple):
    """A text of the store, with its source."""

    text: str
    kind: str
    source: str


def digest(text: str, kind: str) -> bytes:
    """A 16-byte hash of kind and text, which ignores differences in white space."""
    return hashlib.blake2b(normalised_bytes(text), digest_size=16, key=kind.encode()).digest()
