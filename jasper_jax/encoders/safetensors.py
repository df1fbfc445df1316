"""The safetensors format, read lazily and checked, written one tensor at a time.

A file is 8 bytes (little-endian header length), a JSON header {name: {dtype, shape, data_offsets}}, then the data.
Reading maps the file: a tensor is a view until it is copied. A header that does not describe its file to the byte is
refused before any tensor is touched.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jasper_jax.encoders.hf_config import read_json
from jasper_jax.runtime.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # the format's own limit
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_MOST_AXES, _MOST_BYTES = 64, 2**63 - 1
"""What an array can have, counting an axis of length 0 as 1: an empty tensor may claim more, and numpy refuses it."""


class TensorFile(Mapping[str, np.ndarray]):
    """One file as a read-only mapping name -> array; each array is a view into the mapped file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if len(head) < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise self._broken(f"it is {size} bytes long and its header claims {length}")
            header = self._parse(file.read(length))
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._entries = self._check(header, size - 8 - length)
        self._data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.empty(0, np.uint8)

    def _broken(self, why: str) -> UserError:
        return UserError(f"{self.path}: not a whole safetensors file ({why}); copy or download it again")

    def _parse(self, text: bytes) -> dict[str, Any]:
        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) < len(pairs):
                raise self._broken("its header names a tensor twice")
            return found

        try:
            header = json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError):
            raise self._broken("its header is not JSON") from None
        if not isinstance(header, dict):
            raise self._broken("its header is not an object")
        return header

    def _check(self, header: dict[str, Any], size: int) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
        """Name -> (dtype, shape, first byte). The tensors must fill the data exactly: no hole, no overlap."""
        entries, spans = {}, []
        for name, entry in header.items():
            try:
                kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
                whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
            except (TypeError, KeyError, ValueError):
                raise self._broken(f"the header entry of {name} is malformed") from None
            if not whole or not isinstance(kind, str) or len(shape) > _MOST_AXES:
                raise self._broken(f"the header entry of {name} is malformed")
            if kind not in DTYPES:
                raise UserError(f"{self.path}: {name} is stored as {kind}; {', '.join(DTYPES)} can be read")
            if math.prod(n or 1 for n in shape) * DTYPES[kind].itemsize > _MOST_BYTES:
                raise self._broken(f"{name} is {kind} {list(shape)}, which no file can hold")
            if end - start != math.prod(shape) * DTYPES[kind].itemsize:
                raise self._broken(f"{name} is {kind} {list(shape)} but is given {end - start} bytes")
            entries[name] = (DTYPES[kind], shape, start)
            spans.append((start, end, name))
        position = 0
        for start, end, name in sorted(spans):
            if start != position:
                raise self._broken(f"{name} starts at byte {start}, where {position} was expected")
            position = end
        if position != size:
            raise self._broken(f"its header describes {position} bytes of data, {size} are there")
        return entries

    def __getitem__(self, name: str) -> np.ndarray:
        dtype, shape, start = self._entries[name]
        size = math.prod(shape) * dtype.itemsize
        return np.asarray(self._data[start : start + size]).view(dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def open_checkpoint(folder: Path) -> dict[str, TensorFile]:
    """Tensor name -> the file that holds it: ``model.safetensors``, or the shards of its ``index.json``.

    A folder that only has pickled weights is refused: unpickling runs code from the file.
    """
    if (folder / SINGLE).is_file():
        file = TensorFile(folder / SINGLE)
        return dict.fromkeys(file, file)
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: has {pickles[0]} but no {SINGLE}; pickled weights are never loaded, convert them once where "
            f'PyTorch is installed: python -c "from transformers import AutoModel as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise UserError(f"{folder}: no weights; {SINGLE} or {INDEX} is needed")


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    index = read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{folder / INDEX}: has no weight_map of tensor names to file names")
    wrong = [name for name in shards.values() if Path(name).name != name]
    if wrong:
        raise UserError(f"{folder / INDEX}: names {wrong[0]!r}; shards must lie in the same folder")
    files = {name: TensorFile(folder / name) for name in sorted(set(shards.values()))}
    held = {(tensor, name) for name, file in files.items() for tensor in file}
    odd = sorted(held.symmetric_difference(shards.items()))
    if odd:
        tensor, name = odd[0]
        side = "which the index does not list there" if odd[0] in held else "which is not in that file"
        raise UserError(f"{folder / INDEX}: {tensor} of {name}, {side} ({len(odd)} such); download the shards again")
    return {tensor: files[name] for tensor, name in shards.items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write ``tensors`` (C order, one copied at a time) under a temporary name, then rename: whole or absent."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for this entry
    position = 0
    for name in sorted(tensors):
        array = tensors[name]
        if array.dtype not in _NAMES:
            raise ValueError(f"{name}: {array.dtype} has no safetensors name")
        end = position + array.size * array.dtype.itemsize
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f"{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).view(np.uint8).data if tensors[name].size else b"")
    os.replace(temporary, path)
