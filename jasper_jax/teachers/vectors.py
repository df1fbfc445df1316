"""Teacher vectors on disk, row-aligned with the text store, and several teachers as one.

A store has the text store's splits and shards. A record is a tf.Example with one bytes feature, so TFDS can read the
files; here the constant bytes before the values are skipped and a batch is decoded at once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from jasper_jax.data import shards as sh
from jasper_jax.data.texts import TextStore
from jasper_jax.runtime import files
from jasper_jax.runtime.errors import UserError

FORMAT = 1
DTYPES = {"float16": np.float16, "float32": np.float32, "int8": np.int8}
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
        if small := next((s for s in self.shards if s.bytes < s.rows * row), None):
            raise ValueError(f"{small.file} has {small.bytes} bytes, {small.rows} vectors of spec.dim need more")
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


def concatenate(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Several teachers' ``[n, T_i]`` as one ``[n, ΣT]``: each normalised, joined, normalised again (section 2.1)."""
    rows = [normalize_rows(x) for x in vectors]
    return normalize_rows(np.concatenate(rows, axis=1)) if len(rows) > 1 else rows[0]


def store_bytes(count: int, dim: int, dtype: str, shard_rows: int = 1024) -> int:
    """Approximate size in bytes of a store of ``count`` vectors."""
    shards = -(-count // shard_rows)
    return count * (dim * np.dtype(DTYPES[dtype]).itemsize + 64) + shards * 128 * 1024


# ------------------------------------------------------------------------------------------- records


@functools.cache
def _prefix(nbytes: int) -> bytes:
    """The bytes of a record before its values, the names and lengths of tf.Example: the same for every row."""
    example = sh.example_class()()
    example.features.feature["vector"].bytes_list.value.append(bytes(nbytes))
    return example.SerializeToString(deterministic=True)[:-nbytes]


@dataclass(frozen=True)
class Codec:
    """Encodes vectors as records and decodes them: float16, float32, or int8 with ``scales [T]``."""

    dim: int
    dtype: str
    scales: np.ndarray | None = None

    @property
    def _nbytes(self) -> int:
        return self.dim * np.dtype(DTYPES[self.dtype]).itemsize

    def encode(self, vectors: np.ndarray) -> tuple[list[bytes], int]:
        """Records of ``[n, T]`` float32 vectors, and how many values int8 clipped."""
        clipped = 0
        if self.scales is not None:
            rounded = np.rint(vectors / self.scales)
            clipped = int(np.count_nonzero(np.abs(rounded) > 127))
            vectors = np.clip(rounded, -127, 127)
        values = np.ascontiguousarray(vectors, DTYPES[self.dtype]).view(np.uint8)
        prefix = np.frombuffer(_prefix(self._nbytes), np.uint8)
        data = np.empty((len(values), len(prefix) + self._nbytes), np.uint8)
        data[:, : len(prefix)] = prefix
        data[:, len(prefix) :] = values
        return [row.tobytes() for row in data], clipped

    def decode(self, records: Sequence[bytes]) -> np.ndarray:
        """``[n, T]`` float32. ValueError for a record of another form."""
        prefix = np.frombuffer(_prefix(self._nbytes), np.uint8)
        data, shape = np.frombuffer(b"".join(records), np.uint8), (len(records), len(prefix) + self._nbytes)
        if data.size != shape[0] * shape[1] or not (data.reshape(shape)[:, : len(prefix)] == prefix).all():
            raise ValueError(f"records are not {self.dtype} vectors of dimension {self.dim}")
        data = data.reshape(shape)
        vectors = data[:, len(prefix) :].view(DTYPES[self.dtype]).astype(np.float32)
        return vectors if self.scales is None else vectors * self.scales


def int8_scales(vectors: np.ndarray) -> np.ndarray:
    """The scale of each dimension, ``[T]`` float32: 1.25 times the largest magnitude in ``vectors`` becomes 127.

    For 1024 vectors of normal values this headroom makes the error 0.0096 of a standard deviation. Without it clipping
    adds as much error as rounding: 0.0135. A dimension that is always 0 takes the largest of all scales, so that no
    later value is lost.
    """
    largest = np.abs(vectors).max(axis=0)
    return (1.25 * np.where(largest > 0, largest, largest.max()) / 127).astype(np.float32)


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

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the text store these vectors belong to."""
        return self.manifest["texts"]

    def size(self, split: str) -> int:
        return self._reader.size(split)

    def read(self, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Vectors ``[n, T]`` float32 as stored: of norm 1 up to the rounding of the dtype."""
        return self._decode(self._reader.read(split, indices))

    def read_shard(self, shard: sh.ShardInfo) -> np.ndarray:
        return self._decode(self._reader.read_shard(shard))

    def _decode(self, records: list[bytes]) -> np.ndarray:
        try:
            return self.codec.decode(records)
        except ValueError as e:
            raise UserError(f"{self.folder}: {e}; the shards are not the ones of manifest.json") from None


def refuse_other_texts(folder: Path, fingerprint: str, texts: TextStore) -> None:
    if fingerprint != texts.fingerprint:
        raise UserError(
            f"{folder}: made from a text store with fingerprint {fingerprint}, but {texts.folder} has"
            f" {texts.fingerprint}; delete the folder and embed again, or use the text store it was made from"
        )


def refuse_other_spec(folder: Path, recorded: dict[str, Any], spec: VectorSpec) -> None:
    if differences := files.differences(recorded, spec.as_json(), ""):
        raise UserError(
            f"{folder}: its vectors were made with other settings: {'; '.join(differences)}; change the recipe back, or"
            f" delete the folder and embed again"
        )


class TeacherView:
    """Several teachers as one (paper section 2.1): each vector normalised, concatenated, normalised again.

    ``stores`` are vector stores, or teachers that run in the train step (``OnlineVectors``)."""

    def __init__(self, stores: Sequence[Any]):
        if not stores:
            raise ValueError("expected at least one vector store")
        for other in stores[1:]:
            if other.fingerprint != stores[0].fingerprint:
                raise UserError(
                    f"{other.folder} belongs to the text store {other.fingerprint}, {stores[0].folder} to"
                    f" {stores[0].fingerprint}; embed both from one text store"
                )
        self.stores = list(stores)

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
        return concatenate([store.read(split, indices) for store in self.stores])
