"""Texts that are almost the same: MinHash signatures (Broder, 1997) of shingles, in bands.

Two texts are near-duplicates if a band of their signatures is the same. With b bands of r numbers, texts of Jaccard
similarity s share one with probability 1 - (1 - s^r)^b: a steep curve, whose middle is put at a threshold.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

from jasper_jax.data.augment import normalised
from jasper_jax.runtime.errors import UserError

NUMBERS = 128
"""In a signature."""
SHINGLE = 5
"""Characters."""


@dataclass(frozen=True)
class Bands:
    """A text and its kind -> the 16-byte hashes of its bands. Can be pickled."""

    number: int
    rows: int

    @classmethod
    def of(cls, threshold: float) -> Bands:
        """Those that tell most texts above this Jaccard similarity from those below.

        UserError: datasketch is not installed.
        """
        try:
            from datasketch import MinHashLSH
        except ImportError:
            raise UserError("texts.near_duplicates: needs datasketch: pip install 'jasper-jax[dedup]'") from None
        best = MinHashLSH(threshold, NUMBERS)
        return cls(best.b, best.r)

    def __call__(self, text: str, kind: str) -> tuple[bytes, ...]:
        text = normalised(text).lower()
        shingles = {text[start : start + SHINGLE].encode() for start in range(max(1, len(text) - SHINGLE + 1))}
        empty = _empty()
        signature = empty.copy()
        signature.update_batch(sorted(shingles))
        numbers = signature.hashvalues
        return tuple(
            hashlib.blake2b(
                numbers[band * self.rows : (band + 1) * self.rows].tobytes(),
                digest_size=16,
                key=f"{kind} {band}".encode(),
            ).digest()
            for band in range(self.number)
        )


@functools.cache
def _empty() -> Any:
    from datasketch import MinHash

    return MinHash(NUMBERS, hashfunc=zlib.crc32, scheme="affine32")
