"""A checkpoint's seal: a file beside it with the sha256 of its files, written last and deleted first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file, write_atomic
from jasper_jax.runtime.inside import refuse_links
from jasper_jax.runtime.json_text import parse_json

SUMS = ".sha256.json"
"""Suffix of that file after the checkpoint's name."""
COMMITTED = "commit_success.txt"
"""Orbax writes this machine's path into it, and looks only whether it exists; the mirror does not need the path."""


def sums_path(path: Path) -> Path:
    """The file with the checksums of the checkpoint ``path``."""
    return path.with_name(path.name + SUMS)


def is_complete(path: Path) -> bool:
    """Whether the checkpoint exists and is sealed."""
    return path.is_dir() and sums_path(path).is_file()


def seal(path: Path) -> None:
    """Write the checksums of all files of ``path``: now the checkpoint counts."""
    if (path / COMMITTED).is_file():
        write_atomic(path / COMMITTED, "committed\n")
    write_atomic(sums_path(path), json.dumps(_checksums(path), indent=1))


def verify(path: Path) -> None:
    """UserError if a file of the checkpoint is missing, added, or differs from its recorded sha256; or is a link out of
    the checkpoint, whose content would become weights."""
    refuse_links(path)
    remedy = f"delete {path} and run again to continue from the previous one"
    try:
        expected = parse_json(read_record_bytes(sums_path(path)))
    except (OSError, ValueError):
        expected = None
    if not isinstance(expected, dict):
        raise UserError(f"{sums_path(path)}: expected a list of checksums, the checkpoint is damaged; {remedy}")
    actual = _checksums(path)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise UserError(
                f"{path}/{name}: the checkpoint is damaged (sha256 differs or the file is missing); {remedy}"
            )


def remove(path: Path) -> None:
    """Delete a checkpoint, its seal first."""
    sums_path(path).unlink(missing_ok=True)
    shutil.rmtree(path)


def clear(path: Path) -> None:
    """Delete what is at ``path``, complete or not, and create its folder, to write a new checkpoint there."""
    for leftover in (sums_path(path), path):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        leftover.unlink(missing_ok=True)
    for temporary in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(temporary, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)


def _checksums(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): sha256_file(p) for p in sorted(path.rglob("*")) if p.is_file()}
