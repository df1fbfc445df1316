"""Which keys of a recipe name places on this machine: an export does not publish them, no output overwrites them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jasper_jax.recipe.config_sources import FILE_KINDS, PAIR_FILE_KINDS
from jasper_jax.runtime.paths import matching_files, user_path

PATHS = frozenset({*FILE_KINDS, *PAIR_FILE_KINDS, "folder", "captions", "webdataset", "beir", "file", "instructions"})
"""Keys that are paths of this machine."""
IDS = frozenset({"model", "tokenizer", "tfds", "hf"})
"""Keys that are an id or a path."""
RUNS = frozenset({"run_dir", "stores", "mirror"})
"""Keys that say where a run's files are, which nobody else can use."""


def files_read(section: BaseModel) -> Iterator[Path]:
    """The files that a recipe, or a section of it, names for reading, and the folders whose files are read."""
    for key, value in _named(section.model_dump(mode="json")):
        if key in PATHS:
            yield from matching_files(value, key)
        if (folder := user_path(value, key, new=True)).is_dir():
            yield folder


def _named(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _named(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _named(item, key)
    elif isinstance(value, str) and key in PATHS | IDS:
        yield key, value
