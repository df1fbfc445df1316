"""Caption vectors of the text student, which an image stage does not change: computed once, and cached.

The cache holds pooled vectors, before the heads (Jasper: 1,536 numbers a caption; after its heads, 14,080), a few
thousand a file, so a killed run repeats little. The cache key covers everything they depend on: the pairs, the
encoder's weights, tokenizer, prompt and length. The files are memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jasper_jax.data.pairs import PairStore
from jasper_jax.data.shards import PAIR_SPLITS
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.parameters.trees import flatten
from jasper_jax.runtime import processes
from jasper_jax.runtime.files import mapped_array, read_cached_array, write_cached_array
from jasper_jax.runtime.progress import bar
from jasper_jax.student.student import Student

CHUNK = 4096
VECTORS, NUMBERS = "vectors", "numbers"
KIND = "passage"
"""Captions are encoded as passages, with the student's prompt for passages."""


class CaptionVectors:
    """Pooled caption vectors ``[n, D]`` float32 of each split; picklable."""

    def __init__(self, pairs: PairStore, folder: Path, width: int):
        self.pairs, self.folder, self.width = pairs, folder, width

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """``[n, D]`` float32."""
        return self._read(VECTORS, split, indices, np.empty((len(indices), self.width), np.float32))

    def numbers(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """``[n]`` int32, equal where captions are."""
        return self._read(NUMBERS, split, indices, np.empty(len(indices), np.int32))

    def _read(self, what: str, split: str, indices: Sequence[int] | np.ndarray, out: np.ndarray) -> np.ndarray:
        wanted = np.asarray(indices, np.int64)
        for chunk in np.unique(wanted // CHUNK):
            here = wanted // CHUNK == chunk
            out[here] = mapped_array(self.folder / file_name(what, split, int(chunk)))[wanted[here] % CHUNK]
        return out


def file_name(what: str, split: str, chunk: int) -> str:
    return f"{what}-{split}-{chunk:05d}.npy"


def _number(caption: str) -> int:
    return int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "little", signed=True)


def caption_vectors(
    pairs: PairStore,
    student: Student,
    encoder: Mapping[str, Any],
    tokenizer: Tokenizer,
    folder: Path,
    pooled: Callable[[list[str], str], np.ndarray],
    *,
    progress: bool = True,
) -> CaptionVectors:
    """The caption vectors cached in ``folder``. The processes share the computation of missing or damaged files.

    Args:
      pairs: the captions.
      student: the text student; its prompts, pooling and dtype are part of the key.
      encoder: the text encoder's parameters on the host, part of the key.
      tokenizer: the student's, at its maximum length.
      folder: of the cache; each key has a subfolder.
      pooled: ``(texts, kind) -> [n, D]``.
    """
    key = hashlib.sha256()
    text_settings = (tokenizer.fingerprint(), tokenizer.max_length, student.prompts[KIND], student.pooling)
    settings = (pairs.fingerprint, *text_settings)
    key.update(repr((settings, student.compute_dtype, jax.default_backend())).encode())
    for name, leaf in flatten(encoder).items():
        key.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    folder = folder / key.hexdigest()[:16]
    chunks = [(s, c) for s in PAIR_SPLITS for c in range(-(-pairs.size(s) // CHUNK))]
    own = chunks[processes.index() :: processes.count()]
    folder.mkdir(parents=True, exist_ok=True)

    def rows(split: str, chunk: int) -> int:
        return min(CHUNK, pairs.size(split) - chunk * CHUNK)

    def cached(what: str, split: str, chunk: int) -> bool:
        array = read_cached_array(folder / file_name(what, split, chunk))
        return array is not None and len(array) == rows(split, chunk)

    missing = [(s, c) for s, c in own if not all(cached(what, s, c) for what in (VECTORS, NUMBERS))]
    if missing:
        with bar("captions", sum(rows(s, c) for s, c in missing), "texts", enabled=progress) as shown:
            for split, chunk in missing:
                texts = pairs.captions(split, chunk * CHUNK, chunk * CHUNK + rows(split, chunk))
                numbers = np.array([_number(text) for text in texts], np.int32)
                write_cached_array(folder / file_name(NUMBERS, split, chunk), numbers)
                write_cached_array(folder / file_name(VECTORS, split, chunk), pooled(texts, KIND))
                shown.advance(len(texts))
    processes.barrier("captions")
    return CaptionVectors(pairs, folder, student.width)
