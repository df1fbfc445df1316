"""Token counts of every text, from which batches are packed without reading the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jasper_jax.batches.shared_array import shared_array
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.tokenization import Tokenizer


class TokenCounts:
    """Token counts of every text under a tokenizer and its prompts, cached in ``folder``: ``by_split[split] [n]``.

    ``key`` names everything they depend on.
    """

    def __init__(self, texts: TextStore, tokenizer: Tokenizer, prompts: Mapping[str, str], folder: Path):
        settings = (texts.fingerprint, tokenizer.fingerprint(), tokenizer.max_length, sorted(prompts.items()))
        self.key = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

        def count(split: str, first: int, last: int) -> np.ndarray:
            counts = np.zeros(last - first, np.int32)
            for start in range(first, last, 4096):
                rows = texts.read(split, range(start, min(last, start + 4096)))
                counts[start - first :][: len(rows)] = tokenizer.lengths([prompts[r.kind] + r.text for r in rows])
            return counts

        self.by_split: dict[str, np.ndarray] = {
            split: shared_array(folder / f"{split}-{self.key}.npy", (texts.size(split),), partial(count, split))
            for split in ("train", "held_out")
        }
