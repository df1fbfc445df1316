"""Checks a vector store against its manifest, and measures the error of its dtype: ``jasper vectors verify``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.draw_order import sample_records
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar
from jasper_jax.teachers.vectors import REMEDY, VectorStore, normalize_rows

NORM_ERROR = {"float32": 1e-4, "float16": 2e-3, "int8": 0.3}
"""How far a stored vector's norm may be from 1: the dtype's rounding, and for int8 clipping."""


class Verified(NamedTuple):
    """Figures of a store that passed every check."""

    vectors: int
    shards: int
    smallest_norm: float
    largest_norm: float
    clipped: int
    """Values that int8 clipped, out of ``vectors * dim``."""


class SimilarityError(NamedTuple):
    """|s_stored − s_float32| over the pairs of a sample of texts, s being the cosine of two vectors."""

    texts: int
    largest: float
    mean: float


def verify_store(folder: Path | str, texts: TextStore, progress: bool = True) -> Verified:
    """Check the sha256, rows and norms of every shard; UserError names the first that differs."""
    store = VectorStore.open(folder, texts)
    low, high = np.inf, 0.0
    pairs = list(zip(store.shards, store.manifest["shards"], strict=True))
    with bar(f"verifying {Path(folder).name}", len(pairs), "shards", enabled=progress) as shown:
        for shard, entry in pairs:
            path = store.folder / entry["file"]
            if (digest := files.sha256_file(path)) != entry["sha256"]:
                raise UserError(f"{path}: sha256 is {digest}, the manifest says {entry['sha256']}; {REMEDY}")
            rows, vectors = store.read_shard(shard)
            norms = np.linalg.norm(vectors, axis=1)
            wrong = ~(np.abs(norms - 1) <= NORM_ERROR[store.dtype])
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                raise UserError(
                    f"{path}, row {rows[first]}: norm {norms[first]:.4f}, expected 1 ± {NORM_ERROR[store.dtype]}"
                    f" ({int(wrong.sum())} such rows); {REMEDY}"
                )
            low, high = min(low, float(norms.min(initial=np.inf))), max(high, float(norms.max(initial=0.0)))
            shown.advance()
    return Verified(store.manifest["count"], len(pairs), low, high, store.manifest["clipped"])


def dtype_error(
    store: VectorStore,
    texts: TextStore,
    encode: Callable[[list[str], list[str]], np.ndarray],
    *,
    sample: int = 256,
    seed: int = 0,
) -> SimilarityError:
    """The error of similarities due to the store's dtype, measured on ``sample`` training texts encoded in float32.

    Both sides are normalised, as in ``TeacherView``. A large error may also mean that another teacher than ``encode``
    made the store.
    """
    held = store.rows(sh.TRAIN)
    rows = held[sample_records(len(held), sample, seed)]
    sampled = texts.read(sh.TRAIN, rows)
    exact = normalize_rows(encode([r.text for r in sampled], [r.kind for r in sampled]))
    stored = normalize_rows(store.read(sh.TRAIN, rows))
    pairs = np.triu_indices(len(rows), k=1)
    error = np.abs(stored @ stored.T - exact @ exact.T)[pairs]
    return SimilarityError(len(rows), float(error.max()), float(error.mean()))
