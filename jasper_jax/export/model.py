"""A trained student with what its export depends on; what both layouts of an export share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.recipe.config import Export
from jasper_jax.student.dimensions import Provider
from jasper_jax.student.heads import nested_head
from jasper_jax.student.student import Student


@dataclass(frozen=True)
class TrainedStudent:
    """A student to export."""

    student: Student
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    source: Path
    """The folder it started from, whose tokenizer files are copied."""
    served: Mapping[int, Provider]
    """The exported dimensions and the heads that provide them."""
    default: int
    """The dimension of a folder loaded without naming one."""
    settings: Export

    @property
    def dtype(self) -> np.dtype:
        """Of the exported weights."""
        return jnp.dtype(self.settings.dtype)

    def head(self, dim: int) -> dict[str, Any]:
        """Parameters of the linear map to ``dim`` dimensions."""
        return nested_head(self.params["heads"][self.served[dim].head], dim)


def exported_prompts(prompts: Mapping[str, str]) -> dict[str, str]:
    """The student's prompts by every name that loaders ask for: sentence-transformers and MTEB take ``document``."""
    return {**prompts, "document": prompts["passage"]}


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` indented, with a newline at the end; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
