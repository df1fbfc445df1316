"""A trained student with what its export depends on; what both layouts of an export share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.safetensors import write_safetensors
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.recipe.config import Export
from jasper_jax.student.dimensions import Provider
from jasper_jax.student.heads import nested_head
from jasper_jax.student.spaces import Space
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
    spaces: Sequence[Space] = ()
    """The teachers' spaces that the vectors of a trained head are in."""

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


def write_dense(folder: Path, head: Mapping[str, Any], dtype: Any) -> None:
    """Write a Dense module, the linear map ``head``, into the new ``folder``."""
    kernel = np.asarray(jnp.asarray(head["kernel"], dtype))
    tensors = {"linear.weight": np.ascontiguousarray(kernel.T)}
    if "bias" in head:
        tensors["linear.bias"] = np.ascontiguousarray(jnp.asarray(head["bias"], dtype))
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    write_json(
        folder / "config.json",
        {
            "in_features": kernel.shape[0],
            "out_features": kernel.shape[1],
            "bias": "bias" in head,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
