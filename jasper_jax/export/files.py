"""What both layouts of an export share: dtypes by name, and how JSON is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "float16": jnp.float16, "bfloat16": jnp.bfloat16}


def write_json(path: Path, content: Any) -> None:
    """Indented, with a newline at the end; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
