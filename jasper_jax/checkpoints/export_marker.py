"""Which files of an exported folder are its own: those that its marker names, of the names that an export has.

A new export replaces these and nothing else, in the run folder, in ``--output``, and in the mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from jasper_jax.encoders.quantization import RANGES
from jasper_jax.runtime.files import parse_json

MARKER = "jasper.json"
"""Marks a folder that ``jasper export`` wrote, and has the sha256 of its files."""
MADE_BY = "jasper_jax"
EDITABLE = frozenset({MARKER, "modules.json", "README.md"})
"""Files without a checksum in the marker, because people edit them."""
NAMES = re.compile(
    r"(1_Pooling|2_Dense_\d+|3_Normalize)/(config\.json|model\.safetensors)|README\.md|model\.safetensors"
    r"|(jasper|modules|config|sentence_bert_config|config_sentence_transformers|tokenizer|tokenizer_config)\.json"
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
