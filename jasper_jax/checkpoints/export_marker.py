"""Which files of an exported folder are its own: those that its marker names, of the names that an export has.

A new export replaces these and nothing else, in the run folder, in ``--output``, and in the mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jasper_jax.encoders.quantization import RANGES
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import is_whole, parse_json, sha256_file
from jasper_jax.runtime.inside import file_inside

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
    r"|preprocessor_config\.json|(configuration|modeling|sentence)_jasper_vl\.py"
    r"|special_tokens_map\.json|vocab\.txt|added_tokens\.json|" + re.escape(RANGES)  # written by earlier versions
)
"""Every file that an export can have."""


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


def refuse_damaged(folder: Path) -> None:
    """UserError if a file of an export does not match its checksum in the marker; folders without a marker pass."""
    remedy = "`jasper export` writes the folder again"
    if not (folder / MARKER).is_file():
        return
    try:
        marker = parse_json(file_inside(folder / MARKER).read_bytes())
        sums = dict(marker.get("sha256", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / MARKER}: cannot be read ({error}); delete the folder, then {remedy}") from None
    if not is_whole(marker):
        raise UserError(f"{folder / MARKER}: damaged (its checksum differs); {remedy}")
    if marker.get("format") not in range(1, FORMAT + 1):
        raise UserError(
            f"{folder / MARKER}: an export of format {marker.get('format')!r}, this program reads up to {FORMAT};"
            f" install a newer jasper-jax"
        )
    for name, digest in sums.items():
        if not (folder / name).is_file() or sha256_file(file_inside(folder / name, folder)) != digest:
            raise UserError(f"{folder / name}: missing, or not as it was exported (sha256 differs); {remedy}")
