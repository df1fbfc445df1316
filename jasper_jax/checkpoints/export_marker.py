"""Which files of an exported folder are its own: those that its marker names, of the names that an export has.

A new export replaces these and nothing else, in the run folder, in ``--output``, and in the mirror.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jasper_jax.encoders.quantization import RANGES
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import is_whole, sealed, sha256_file, write_atomic
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json

MARKER = "jasper.json"
"""Marks a folder that ``jasper export`` wrote, and has the sha256 of its files."""
MADE_BY = "jasper_jax"
FORMAT = 1
EDITABLE = frozenset({MARKER, "modules.json", "README.md"})
"""Files without a checksum in the marker, because people edit them."""
NAMES = re.compile(
    r"(1_Pooling|2_Dense_\d+|3_Normalize)/(config\.json|model\.safetensors)|README\.md|model\.safetensors"
    r"|(jasper|modules|config|sentence_bert_config|config_sentence_transformers|tokenizer|tokenizer_config)\.json"
    r"|asymmetric/((query|document)_\d+_\w+/[^/]+|(modules|router_config|config_sentence_transformers)\.json|README\.md)"
    r"|onnx/model(_quantized)?\.onnx(_data)?|preprocessor_config\.json|(configuration|modeling|sentence)_jasper_vl\.py"
    r"|special_tokens_map\.json|vocab\.txt|added_tokens\.json|" + re.escape(RANGES)  # written by earlier versions
)
"""Every file that an export can have."""
_REMEDY = "`jasper export` writes the folder again"


def own_files(marker: bytes | None) -> set[str]:
    """The files that ``marker``, the content of ``MARKER``, says are the export's; empty for any other content."""
    try:
        content = parse_json(marker or b"null")
    except ValueError:
        return set()
    if not isinstance(content, dict) or content.get("made_by") != MADE_BY:
        return set()
    sums = content.get("sha256")
    return only_names({*EDITABLE, *(sums if isinstance(sums, dict) else ())})


def only_names(files: Iterable[object]) -> set[str]:
    """Those of ``files`` that are names of files of an export."""
    return {file for file in files if isinstance(file, str) and NAMES.fullmatch(file)}


def checksums(folder: Path) -> dict[str, str]:
    """The sha256 of each file of ``folder`` that nobody edits."""
    return {
        p.relative_to(folder).as_posix(): sha256_file(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).as_posix() not in EDITABLE
    }


def write_marker(folder: Path, content: Mapping[str, Any]) -> None:
    """Replace the marker by one with ``content`` (``sha256`` among it), sealed by a checksum of its own."""
    text = json.dumps(sealed(content), indent=2, ensure_ascii=False)
    write_atomic(folder / MARKER, f"{text}\n")  # the old one may have a second name, as of a copy by hard links


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of an export. UserError: no such file, damaged, or of a later version."""
    file = folder / MARKER
    if not file.is_file():
        raise UserError(
            f"{folder}: not an exported folder (no {MARKER}); give one that `jasper export` or `jasper run` wrote"
        )
    try:
        marker = parse_json(read_record_bytes(file_inside(file)))
        sums = marker.get("sha256", {})
        if not isinstance(sums, dict) or not all(isinstance(digest, str) for digest in sums.values()):
            raise ValueError("sha256 is no mapping of names to checksums")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); delete the folder, then {_REMEDY}") from None
    if not is_whole(marker):
        raise UserError(f"{file}: damaged (its checksum differs); {_REMEDY}")
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
    for name, digest in read_marker(folder).get("sha256", {}).items():
        try:
            actual = sha256_file(file_inside(folder / name, folder))
        except FileNotFoundError:
            actual = None
        if actual != digest:
            raise UserError(f"{folder / name}: missing, or not as it was exported (sha256 differs); {_REMEDY}")
