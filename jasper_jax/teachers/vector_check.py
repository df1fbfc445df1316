"""Is a vector store what its manifest says, and what did its dtype cost? For ``jasper vectors verify``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jasper_jax.data import shards as sh
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar
from jasper_jax.teachers.vectors import REMEDY, VectorStore, normalize_rows

# How far a stored vector's norm may be from 1: rounding of the dtype; int8 also clips.
NORM_ERROR = {"float32": 1e-4, "float16": 2e-3, "int8": 0.3}


class Verified(NamedTuple):
    """A store in which every check passed."""

    vectors: int
    shards: int
    smallest_norm: float
    largest_norm: float
    clipped: int
    """Values that int8 clipped, of ``vectors * dim``."""


class SimilarityError(NamedTuple):
    """|s_stored − s_float32| over the pairs of a sample of texts, s being the cosine of two vectors."""

    texts: int
    largest: float
    mean: float


def verify_store(folder: Path | str, texts: TextStore, progress: bool = True) -> Verified:
    """Check sha256, rows and norms of every shard; UserError names the first that is not as recorded."""
    store = VectorStore.open(folder, texts)
    low, high = np.inf, 0.0
    pairs = list(zip(store.shards, store.manifest["shards"], strict=True))
    with bar(f"verifying {Path(folder).name}", len(pairs), "shards", enabled=progress) as shown:
        for shard, entry in pairs:
            path = store.folder / entry["file"]
            if (seen := files.sha256_file(path)) != entry["sha256"]:
                raise UserError(f"{path}: sha256 is {seen}, the manifest says {entry['sha256']}; {REMEDY}")
            vectors = store.read_shard(shard)
            norms = np.linalg.norm(vectors, axis=1)
            wrong = ~(np.abs(norms - 1) <= NORM_ERROR[store.dtype])
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise UserError(
                    f"{path}, row {row}: norm {norms[row]:.4f}, 1 ± {NORM_ERROR[store.dtype]} was expected "
                    f"({int(wrong.sum())} such rows); {REMEDY}"
                )
            low, high = min(low, float(norms.min())), max(high, float(norms.max()))
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
    """What the store's dtype does to similarities: ``sample`` training texts encoded anew, in float32.

    Both sides are normalised, as ``TeacherView`` does. ``encode`` must be the teacher that made the store: a
    large value also means that it is not.
    """
    size = texts.size(sh.TRAIN)
    rows = np.sort(np.random.default_rng(seed).choice(size, min(sample, size), replace=False))
    found = texts.read(sh.TRAIN, rows)
    exact = normalize_rows(encode([r.text for r in found], [r.kind for r in found]))
    stored = normalize_rows(store.read(sh.TRAIN, rows))
    pairs = np.triu_indices(len(rows), k=1)
    error = np.abs(stored @ stored.T - exact @ exact.T)[pairs]
    return SimilarityError(len(rows), float(error.max()), float(error.mean()))
