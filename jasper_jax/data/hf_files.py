"""Which files a Hugging Face data set may be made of: its own, of formats without code and without links.

A data set's ``README.md`` lists its files, and may name any address or path: a private key of this machine would become
a training text. So do ``state.json`` and ``dataset_dict.json`` of one that ``save_to_disk`` wrote.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import inside
from jasper_jax.runtime.json_text import parse_json

STATE, SPLITS = "state.json", "dataset_dict.json"
SAVED = (SPLITS, STATE)
"""Files of a folder that ``save_to_disk`` wrote."""
FORMATS = ("arrow", "csv", "imagefolder", "json", "parquet", "text", "webdataset", "xml")
"""Readers of the library that are used. Of the others, that of pickles runs code (in datasets 4.0), and an HDF5 file
can name another as its content."""
_HUB = "hf://datasets/"


def refuse_other_formats(builder: Any, where: str, key: str) -> None:
    """UserError: ``builder`` reads none of ``FORMATS``."""
    package, _, name = type(builder).__module__.rpartition(".")[0].rpartition(".")
    if package != "datasets.packaged_modules" or name not in FORMATS:
        raise UserError(
            f"{key}: {where} has the format {name}; {', '.join(FORMATS)} are read; save it as one of them, e.g. Parquet"
        )


def refuse_other_files(files: Mapping[Any, Iterable[Any]], folder: Path, name: str, key: str) -> None:
    """UserError: one of ``files``, by split, is not in ``folder``, or, without one, not of ``name`` on the hub."""
    for file in (str(file) for split in files.values() for file in split):
        if folder.is_dir():  # of an address, or a file in an archive, ``inside`` would see a name without a file
            own = "://" not in file and os.path.isabs(file) and inside(folder, file) is not None
        else:
            repository = file.removeprefix(_HUB).partition("@")[0]
            own = file.startswith(_HUB) and name in (repository, repository.rpartition("/")[2])
        if not own or "::" in file:
            raise UserError(
                f"{key}: the data set {name} lists {file}, which is not a file of its own (see its README.md); if you"
                " want that file, name it with text, jsonl or parquet"
            )


def refuse_saved_elsewhere(folder: Path, key: str) -> None:
    """UserError: a data set that ``save_to_disk`` wrote names files or splits that are not in its folder."""
    splits = _object(folder / SPLITS, key).get("splits", []) if (folder / SPLITS).exists() else []
    parts = [folder / _plain(split, folder / SPLITS, key) for split in splits] if isinstance(splits, list) else []
    for part in parts or [folder]:
        state = _object(part / STATE, key)
        for kind in ("_data_files", "_indices_data_files"):
            for entry in state.get(kind) or []:
                _plain(entry.get("filename") if isinstance(entry, dict) else entry, part / STATE, key)


def _object(path: Path, key: str) -> dict[str, Any]:
    try:
        value = parse_json(read_record_bytes(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be read ({error}); save the data set again") from None
    if not isinstance(value, dict):
        raise UserError(f"{key}: {path}: expected an object; save the data set again")
    return value


def _plain(name: Any, path: Path, key: str) -> str:
    """``name``, which is that of something in the folder of ``path``."""
    if not isinstance(name, str) or Path(name).name != name or name == "..":
        raise UserError(f"{key}: {path} names {str(name)[:200]!r}, which is not in its folder; save the data set again")
    return name
