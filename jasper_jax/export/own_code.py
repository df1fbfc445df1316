"""Code in an export is this package's: its files as they are here, and no names of other code.

The folder of a run may be somebody else's, with a marker that fits whatever is in it. Whoever loads the export of a
student of images, as its card says with ``trust_remote_code``, would run what that person wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from jasper_jax.encoders.hf_config import CODE_KEYS, read_json
from jasper_jax.export.jasper_vl import AUTO_MAP, CODE, MODULE
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.teachers.torch_settings import MODULE_TYPE, module_types


def refuse_other_code(folder: Path) -> None:
    """UserError: an export has code, or a name of code, that this version of the package does not write."""
    for path, what in _other_code(folder):
        raise UserError(
            f"{path}: {what} of this version of jasper_jax, and is run with trust_remote_code; if you trust the run,"
            " `jasper export` writes the folder again"
        )


def _other_code(folder: Path) -> Iterator[tuple[Path, str]]:
    for name in CODE:
        own = files("jasper_jax.export").joinpath("remote", name).read_bytes()
        if (folder / name).exists() and read_record_bytes(file_inside(folder / name, folder)) != own:
            yield folder / name, "is not the code"
    for path, kind in module_types(folder):
        if kind != MODULE and not (isinstance(kind, str) and MODULE_TYPE.fullmatch(kind)):
            yield path, f"names {kind!r}, which is not code"
    for path in sorted(folder.rglob("*config.json")):
        config = read_json(path)
        own = isinstance(config, dict) and path.parent == folder and config.get("auto_map") == AUTO_MAP
        for key in _code_keys({**config, "auto_map": None} if own else config):
            yield path, f"has {key}, which does not name code"


def _code_keys(config: Any) -> Iterator[str]:
    """The keys of a config that name code and have a value, at any depth."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from sorted(key for key in CODE_KEYS & value.keys() if value[key] is not None)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
