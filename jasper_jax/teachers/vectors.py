"""Teacher vectors on disk, row-aligned with the text store, and several teachers as one.

A store has the text store's splits and shards. A record is a tf.Example with one bytes feature, so TFDS can read the
files. The record of a training text that no stage draws may be empty.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from jasper_jax.data import shards as sh
from jasper_jax.data.drawn import Draws
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.codec import DTYPES, Codec
from jasper_jax.teachers.held import Held, drawn_rows, held_draws, holds

FORMAT = 1
REMEDY = "delete this file and embed again: only missing shards are made"
Scale = Annotated[float, Field(gt=0, lt=1e30)]
"""What an int8 value is multiplied by."""


@dataclass(frozen=True)
class VectorSpec:
    """What determines the vectors of a store: two stores with equal specs hold the same teacher's vectors."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    teacher: dict[str, Any]
    """Identity of the model, as JSON values: id, revision, sha256 of its weights, ..."""
    prompts: dict[str, str]
    """By kind, the text put before a text."""
    pooling: str
    max_length: int | None
    dim: int
    dtype: Literal["float16", "float32", "int8"] = "float16"

    def as_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


class VectorShard(sh.ShardEntry):
    clipped: sh.Count
    """Values that int8 clipped."""
    held: Held | None = None
    """None: all rows have a vector."""

    @property
    def vectors(self) -> int:
        return self.rows if self.held is None else self.held.vectors


class VectorManifest(sh.StoreManifest):
    """``manifest.json`` of a vector store; ``texts`` is the fingerprint of its text store."""

    shards: Sequence[VectorShard]
    texts: str
    spec: VectorSpec
    count: sh.Count
    clipped: sh.Count
    scales: list[Scale] | None

    @model_validator(mode="after")
    def _scaled(self) -> VectorManifest:
        if self.spec.dim < 1:
            raise ValueError(f"spec.dim is {self.spec.dim}; expected at least 1")
        row = self.spec.dim * np.dtype(DTYPES[self.spec.dtype]).itemsize
        if small := next((s for s in self.shards if s.bytes < s.vectors * row), None):
            raise ValueError(f"{small.file} has {small.bytes} bytes, {small.vectors} vectors of spec.dim need more")
        if (self.scales is None) != (self.spec.dtype != "int8") or len(self.scales or ()) not in (0, self.spec.dim):
            raise ValueError(f"scales: int8 vectors have one for each of {self.spec.dim} dimensions, others none")
        return self


def normalize_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of ``[n, T]`` divided by their L2 norms, float32; a row of zeros stays zero.

    NumPy, for vectors in host memory. JAX programs use ``losses.normalize``, where rows shorter than 1e-6 stay shorter
    than 1, so that the gradient is finite.
    """
    x = np.array(vectors, np.float32)
    norms = np.sqrt(np.einsum("nt,nt->n", x, x))
    x /= np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
    return x


def concatenate(vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Several teachers' ``[n, T_i]`` as one ``[n, ΣT]``: each normalised, joined, normalised again (section 2.1).

    Each is multiplied by the root of its weight w_i before it is joined, so that similarities are ``Σ w_i cos_i / Σ
    w_i``; equal weights are the paper's.
    """
    rows = [normalize_rows(x) for x in vectors]
    if len(rows) == 1:
        return rows[0]
    scaled = [x * np.float32(scale) for x, scale in zip(rows, scales(weights), strict=True)]
    return normalize_rows(np.concatenate(scaled, axis=1))


def scales(weights: Sequence[float]) -> list[float]:
    """What each teacher's normalised vector is multiplied by: the root of its weight, 1 for the largest."""
    return [(weight / max(weights)) ** 0.5 for weight in weights]


def store_bytes(count: int, dim: int, dtype: str, shard_rows: int = 1024) -> int:
    """Approximate size in bytes of a store of ``count`` vectors."""
    shards = -(-count // shard_rows)
    return count * (dim * np.dtype(DTYPES[dtype]).itemsize + 64) + shards * 128 * 1024


def write_metadata(folder: Path, spec: VectorSpec, shards: Sequence[sh.ShardInfo], size: dict[str, int]) -> None:
    """The TFDS files of a vector store; ``size`` is the bytes of each split."""
    import tensorflow_datasets as tfds

    vector = tfds.features.Tensor(
        shape=(spec.dim,), dtype=np.dtype(DTYPES[spec.dtype]), encoding=tfds.features.Encoding.BYTES
    )
    about = "Teacher vectors, row-aligned with a text store; see manifest.json (int8: multiply by its scales)."
    sh.write_metadata(folder, "vectors", {"vector": vector}, shards, size, about)


# --------------------------------------------------------------------------------------------- store


class VectorStore:
    """A finished vector store: random access to vectors, thread-safe, picklable."""

    is_online = False

    def __init__(self, folder: Path, manifest: dict[str, Any], texts: TextStore):
        self.folder, self.manifest = Path(folder), manifest
        self.name = self.folder.name
        self.spec = VectorSpec(**manifest["spec"])
        self.dim, self.dtype = self.spec.dim, self.spec.dtype
        self.shards = texts.shards
        scales = manifest["scales"]
        self.codec = Codec(self.dim, self.dtype, None if scales is None else np.array(scales, np.float32))
        names = {shard: entry["file"] for shard, entry in zip(self.shards, manifest["shards"], strict=True)}
        self._reader = sh.ShardReader(self.folder, names, REMEDY)

    @classmethod
    def open(cls, folder: Path | str, texts: TextStore, spec: VectorSpec | None = None) -> VectorStore:
        """Open a finished store of ``texts``, and check it against ``spec`` if given.

        Raises:
          UserError: the store is incomplete, of other texts, of another teacher or of a later format version; a shard
            is missing or has another size.
        """
        folder = Path(folder)
        if not (folder / "manifest.json").exists() and (folder / "spec.json").exists():
            made = sum((folder / sh.shard_file("vectors", s, texts.shards)).exists() for s in texts.shards)
            raise UserError(
                f"{folder}: vectors are incomplete, {made} of {len(texts.shards)} shards are there;"
                f" continue with jasper embed"
            )
        manifest = files.read_manifest(folder, "vector store", FORMAT, VectorManifest)
        refuse_other_texts(folder, manifest["texts"], texts)
        if spec is not None:
            refuse_other_spec(folder, manifest["spec"], spec)
        if problem := sh.other_shards(manifest["shards"], texts.shards):
            raise UserError(f"{folder / 'manifest.json'}: {problem}; delete the folder and embed again")
        files.check_files(folder, manifest["shards"], REMEDY)
        return cls(folder, manifest, texts)

    def refuse_lacking(self, draws: Draws | None) -> None:
        """UserError: vectors of ``draws`` are not there (None: of all texts)."""
        if lacking := sum(not holds(entry, draws) for entry in self.manifest["shards"]):
            raise UserError(
                f"{self.folder}: {lacking} of {len(self.shards)} shards lack vectors of texts that the stages draw;"
                f" continue with jasper embed"
            )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the text store these vectors belong to."""
        return self.manifest["texts"]

    def size(self, split: str) -> int:
        return self._reader.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Vectors ``[n, T]`` float32 as stored: of norm 1 up to the rounding of the dtype.

        Raises:
          UserError: a text has no vector, as no stage drew it when the texts were embedded.
        """
        records = self._reader.read(split, indices)
        if not all(records):
            absent = int(np.asarray(indices)[records.index(b"")])
            raise UserError(
                f"{self.folder}: {split} text {absent} has no vector, no stage drew it when the texts were embedded;"
                f" continue with jasper embed"
            )
        return self._decode(records)

    def read_shard(self, shard: sh.ShardInfo) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the shard that have a vector ``[n]``, and their vectors ``[n, T]``."""
        records = self._reader.read_shard(shard)
        rows = np.flatnonzero([bool(record) for record in records])
        return rows, self._decode([records[row] for row in rows])

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split that have a vector, ascending."""
        held = [
            shard.start + np.flatnonzero(drawn_rows(held_draws(entry), shard, self.size(split)))
            for shard, entry in zip(self.shards, self.manifest["shards"], strict=True)
            if shard.split == split
        ]
        return np.concatenate([np.zeros(0, np.int64), *held])

    def _decode(self, records: list[bytes]) -> np.ndarray:
        try:
            return self.codec.decode(records)
        except ValueError as e:
            raise UserError(f"{self.folder}: {e}; the shards are not the ones of manifest.json") from None


def refuse_other_texts(folder: Path, fingerprint: str, texts: TextStore) -> None:
    if fingerprint != texts.fingerprint:
        raise UserError(
            f"{folder}: made from a text store with fingerprint {fingerprint}, but {texts.folder} has"
            f" {texts.fingerprint}; use the text store it was made from, set stores=... to another folder, or delete"
            f" the folder and embed again"
        )


def refuse_other_spec(folder: Path, recorded: dict[str, Any], spec: VectorSpec) -> None:
    if differences := files.differences(recorded, spec.as_json(), ""):
        raise UserError(
            f"{folder}: its vectors were made with other settings: {'; '.join(differences)}; change the recipe"
            f" back, give the teacher another name (its store has the name), or delete the folder and embed again"
        )


class TeacherView:
    """Several teachers as one (paper section 2.1): each vector normalised, concatenated, normalised again.

    ``stores`` are vector stores, or teachers that run in the train step (``OnlineVectors``); ``weights`` are theirs in
    :func:`concatenate`, None for equal ones."""

    def __init__(self, stores: Sequence[Any], weights: Sequence[float] | None = None):
        if not stores:
            raise ValueError("expected at least one vector store")
        for other in stores[1:]:
            if other.fingerprint != stores[0].fingerprint:
                raise UserError(
                    f"{other.folder} belongs to the text store {other.fingerprint}, {stores[0].folder} to"
                    f" {stores[0].fingerprint}; embed both from one text store"
                )
        self.stores = list(stores)
        self.weights = [1.0] * len(stores) if weights is None else list(weights)

    @property
    def dim(self) -> int:
        """ΣT, the sum of the teachers' dimensions."""
        return sum(store.dim for store in self.stores)

    def size(self, split: str) -> int:
        return self.stores[0].size(split)

    @property
    def names(self) -> list[str]:
        """The teachers' names, in the order in which their vectors are concatenated."""
        return [store.name for store in self.stores]

    @property
    def online(self) -> list[Any]:
        """The teachers that run in the train step."""
        return [store for store in self.stores if store.is_online]

    def stored(self) -> list[VectorStore]:
        """The teachers whose vectors are stored."""
        return [store for store in self.stores if not store.is_online]

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """``[n, ΣT]`` float32 of norm 1."""
        return concatenate([store.read(split, indices) for store in self.stores], self.weights)
