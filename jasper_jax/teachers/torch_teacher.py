"""Teachers through sentence-transformers (``teachers[].backend: torch``): models that no encoder here implements."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.prompts import prompt_of, read_prompts
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.teacher import given_prompts


def refuse_without_torch(teacher: Teacher) -> None:
    """UserError when sentence-transformers is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            f"teachers.{teacher.name}.backend: torch needs sentence-transformers: pip install 'jasper-jax[export]'"
        )


class TorchEncoder:
    """``(texts, kinds) -> [n, T]`` for ``embed_teacher``; the model is loaded when a text is first encoded."""

    def __init__(self, teacher: Teacher, source: Path):
        self.teacher, self.source = teacher, source
        self._prompts = {**read_prompts(source)[0], **given_prompts(teacher)}

    @functools.cached_property
    def _model(self) -> Any:
        refuse_without_torch(self.teacher)
        import torch
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                str(self.source),
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": getattr(torch, self.teacher.compute_dtype)},
            )
        except Exception as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"teachers.{self.teacher.name}: sentence-transformers cannot load {self.source} without running code"
                f" from it ({first[:200]}); embed the texts where it may run, then jasper vectors import"
            ) from error
        if self.teacher.max_length is not None:
            model.max_seq_length = self.teacher.max_length
        return model

    def __call__(self, texts: Sequence[str], kinds: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        out: np.ndarray | None = None
        for kind in sorted(set(kinds)):
            rows = [i for i, one in enumerate(kinds) if one == kind]
            prompt = prompt_of(self._prompts, kind)
            # A prompt of its own always: without one, the model's default prompt would be put before the texts.
            vectors = self._model.encode([texts[i] for i in rows], prompt=prompt, show_progress_bar=show_progress)
            out = np.empty((len(texts), vectors.shape[1]), np.float32) if out is None else out
            out[rows] = vectors
        return np.empty((0, self.teacher.dim or 0), np.float32) if out is None else out
