"""Checkpoints in the safetensors format: tensors are read on access, errors are one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, where safetensors looks it up
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jasper_jax.encoders.hf_config import read_json, refuse_pointer
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.shell import python_command

READABLE = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
MOST_TENSORS = 100_000
"""In a file. A header of 100 MB, the most that the library reads, could name millions."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_CONVERT = "from transformers import AutoModel as M; M.from_pretrained({}).save_pretrained({})"
"""From pickles to safetensors."""
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


class TensorFile(Mapping[str, np.ndarray]):
    """One file as a read-only mapping name -> array; each access reads the tensor anew.

    Opening checks that the header matches the file's size. UserError: it does not, or the file is missing, or a link
    out of its folder.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file: Any = safe_open(file_inside(path), framework="np")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; copy or download it again") from None
        except SafetensorError as error:
            refuse_pointer(path)
            raise self._broken(error) from None
        names = self._file.keys()
        if len(names) > MOST_TENSORS:
            raise UserError(f"{path}: has {len(names):,} tensors; at most {MOST_TENSORS:,} are read from a file")
        self._slices = {name: self._file.get_slice(name) for name in names}
        for name, entry in self._slices.items():
            if entry.get_dtype() not in READABLE:
                raise UserError(f"{path}: {name} is stored as {entry.get_dtype()}; {', '.join(READABLE)} can be read")

    def _broken(self, error: Exception) -> UserError:
        why = " ".join(str(error).split())
        return UserError(f"{self.path}: incomplete or invalid safetensors file ({why}); copy or download it again")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header."""
        return tuple(self._slices[name].get_shape())

    def dtype(self, name: str) -> str:
        """The format's name for a tensor's dtype (``BF16``), from the header."""
        return self._slices[name].get_dtype()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """``self[name][start:stop]``, without reading the rest."""
        return self._slices[name][start:stop]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._slices:
            raise KeyError(name)
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, ValueError) as error:  # a shape beyond what numpy can hold
            raise self._broken(error) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._slices)

    def __len__(self) -> int:
        return len(self._slices)


def _pickles(folder: Path) -> list[str]:
    return sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))


def has_weights(folder: Path) -> bool:
    """Whether ``folder`` has the weights of a model, pickled ones included."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file() or bool(_pickles(folder))


def open_checkpoint(folder: Path) -> dict[str, TensorFile]:
    """Tensor name -> the file that holds it: ``model.safetensors``, or the shards of its ``index.json``.

    UserError: only pickled weights; unpickling would run code from the file.
    """
    if (folder / SINGLE).is_file():
        file = TensorFile(folder / SINGLE)
        return dict.fromkeys(file, file)
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    if pickles := _pickles(folder):
        raise UserError(
            f"{folder}: has {pickles[0]} but no {SINGLE}; pickled weights are never loaded; convert them once where "
            f"PyTorch is installed: {python_command(_CONVERT, folder, folder)}"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f"; found {', '.join(others)}: rename the one to use to {SINGLE}" if others else ""
    raise UserError(f"{folder}: no weights; expected {SINGLE} or {INDEX}{hint}")


def _open_shards(folder: Path) -> dict[str, TensorFile]:
    index = read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{folder / INDEX}: expected a weight_map of tensor names to file names")
    wrong = [name for name in shards.values() if Path(name).name != name]
    if wrong:
        raise UserError(f"{folder / INDEX}: names {wrong[0]!r}; shards must be in the same folder")
    files = {name: TensorFile(folder / name) for name in sorted(set(shards.values()))}
    held = {(tensor, name) for name, file in files.items() for tensor in file}
    odd = sorted(held.symmetric_difference(shards.items()))
    if odd:
        tensor, name = odd[0]
        side = "which the index does not list there" if odd[0] in held else "which is not in that file"
        raise UserError(f"{folder / INDEX}: {tensor} of {name}, {side} ({len(odd)} such); download the shards again")
    return {tensor: files[name] for tensor, name in shards.items()}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write ``tensors`` atomically: the file is complete or absent. OSError: writing failed."""
    temporary = path.with_name(f"{path.name}.writing")
    temporary.touch()
    mode = temporary.stat().st_mode  # as the umask has it; the library's own files are readable by the owner only
    in_order = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}  # the library ignores strides
    try:
        save_file(in_order, temporary, metadata={"format": "pt"})  # required by transformers
    except SafetensorError as error:
        temporary.unlink()
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error from None
    temporary.chmod(mode)
    os.replace(temporary, path)
