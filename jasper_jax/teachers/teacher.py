"""A teacher: a model folder with the recipe's prompts, length and dimension, or vectors that were imported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.assets.models import model_identity
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.prompts import KINDS, prompt_of, read_prompts
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.vectors import VectorSpec


def load_teacher(teacher: Teacher, source: Path | ModelFolder) -> Embedder:
    """The teacher's model, ready to encode as the recipe says."""
    return Embedder.load(
        source,
        dtype=teacher.compute_dtype,
        max_length=teacher.max_length,
        prompts=given_prompts(teacher),
        dim=teacher.dim,
        causal=teacher.causal,
        append_eos=teacher.append_eos,
    )


def teacher_dim(teacher: Teacher, source: Path | ModelFolder | None) -> int:
    """Dimension of the teacher's vectors. ``source``: what its model folder says; the path alone suffices where another
    library reads the folder (``backend: torch``); None where vectors are imported."""
    if source is None and teacher.dim is None:
        raise UserError(f"teachers.{teacher.name}.dim: vectors that are imported need their dimension here")
    if source is None or teacher.backend == "torch":
        assert teacher.dim is not None
        return teacher.dim
    return _output_dim(read_model_folder(source, causal=teacher.causal), teacher)


def teacher_spec(teacher: Teacher, source: Path | ModelFolder | None) -> VectorSpec:
    """What the teacher's vectors depend on; recorded in the store and compared before vectors are added or used.
    ``source`` as for :func:`teacher_dim`. Reads all of the model's weights, for their checksums."""
    if source is None:
        return VectorSpec(
            teacher={"name": teacher.name, "id": "imported"},
            prompts={},
            pooling="imported",
            max_length=None,
            dim=teacher_dim(teacher, None),
            dtype=teacher.dtype,
        )
    path = source.path if isinstance(source, ModelFolder) else source
    made: dict[str, Any] = {key: getattr(teacher, key) for key in ("causal", "append_eos")}
    if teacher.backend == "torch":
        made["backend"] = "torch"
        own, pooling, max_length = read_prompts(path)[0], "sentence-transformers", teacher.max_length
    else:
        source = read_model_folder(source, causal=teacher.causal)
        own = source.prompts
        pooling = "+".join(source.pooling.modes) + ("" if source.pooling.include_prompt else ", prompt left out")
        limit = teacher.max_length or source.max_length
        max_length = limit or encoder_from_config(source.hf_config, str(path)).max_positions
    prompts = {**own, **given_prompts(teacher)}
    return VectorSpec(
        teacher={
            "name": teacher.name,
            "compute_dtype": teacher.compute_dtype,
            **{key: value for key, value in made.items() if value is not None},
            **model_identity(teacher.model or "", teacher.revision, path),
        },
        prompts={kind: prompt_of(prompts, kind) for kind in KINDS},
        pooling=pooling,
        max_length=max_length,
        dim=teacher_dim(teacher, source),
        dtype=teacher.dtype,
    )


class TeacherEncoder:
    """``(texts, kinds) -> [n, T]`` for ``embed_teacher``; ``tokens`` counts the tokens encoded so far.

    The model is loaded when a text is first encoded: a store that is whole needs none.
    """

    def __init__(self, load: Callable[[], Embedder]):
        self._load = load

    @functools.cached_property
    def _embedder(self) -> Embedder:
        return self._load()

    @property
    def tokens(self) -> int:
        """Tokens encoded so far, padding not counted."""
        return self._embedder.tokens

    def __call__(self, texts: Sequence[str], kinds: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        return self._embedder.encode(list(texts), kind=list(kinds), show_progress=show_progress)


def given_prompts(teacher: Teacher) -> dict[str, str]:
    """The recipe's own prompts, by kind."""
    return {kind: text for kind, text in teacher.prompts.model_dump().items() if text is not None}


def _output_dim(folder: ModelFolder, teacher: Teacher) -> int:
    encoder = encoder_from_config(folder.hf_config, str(folder.path))
    pooled = folder.pooling.size(encoder.hidden_size)
    have = sorted(folder.outputs) or [pooled]
    if teacher.dim is not None and teacher.dim not in have:
        raise UserError(
            f"teachers.{teacher.name}.dim: {teacher.dim} is not a dimension of {folder.path}; it has"
            f" {', '.join(map(str, have))}"
        )
    return teacher.dim or folder.default_dim or pooled
