"""``jasper.json``: marks a folder as an export, and has the checksums of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import is_whole, parse_json, sealed, sha256_file

MARKER = "jasper.json"
"""Marks a folder that this program wrote and may replace."""
FORMAT = 1
EDITABLE = {MARKER, "modules.json", "README.md"}
"""Files without a checksum in the marker, because people edit them."""


def checksums(folder: Path) -> dict[str, str]:
    """The sha256 of each file of ``folder`` that nobody edits."""
    return {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in EDITABLE
    }


def write_marker(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the marker with ``content`` (``sha256`` among it), sealed by a checksum of its own."""
    text = json.dumps(sealed(content), indent=2, ensure_ascii=False)
    (folder / MARKER).write_text(f"{text}\n", "utf-8")


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of an export. UserError: no such file, damaged, or of a later version."""
    remedy = "`jasper export` writes the folder again"
    file = folder / MARKER
    if not file.is_file():
        raise UserError(
            f"{folder}: not an exported folder (no {MARKER}); give one that `jasper export` or `jasper run` wrote"
        )
    try:
        marker = parse_json(file.read_text("utf-8"))
        dict(marker.get("sha256", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {remedy}") from None
    if not is_whole(marker):
        raise UserError(f"{file}: damaged (its checksum differs); {remedy}")
    if marker.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{file}: an export of format {marker.get('format')!r}, this program reads up to {FORMAT};"
            f" install a newer jasper-jax"
        )
    return marker


def refuse_damaged(folder: Path) -> None:
    """UserError if a file of an export does not match its checksum in the marker; folders without a marker pass."""
    if not (folder / MARKER).is_file():
        return
    for name, digest in dict(read_marker(folder).get("sha256", {})).items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise UserError(
                f"{folder / name}: missing, or not as it was exported (sha256 differs); `jasper export` writes the"
                " folder again"
            )
