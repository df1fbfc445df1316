"""The model of a recipe's teacher: where it is, what its folder says, how it encodes. Located and read once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from jasper_jax.assets.models import is_here, resolve_model
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.published import describe as published
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.teacher import TeacherEncoder, load_teacher, teacher_dim, teacher_spec
from jasper_jax.teachers.torch_teacher import TorchEncoder
from jasper_jax.teachers.vectors import VectorSpec


class TeacherModel:
    """One entry of ``teachers``: its ``settings``, and the model that they name."""

    def __init__(self, settings: Teacher, *, describe: bool = False, progress: bool = True):
        """``describe``: take what is published about a model that is not here instead of fetching it."""
        self.settings, self._describe, self._progress = settings, describe, progress

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def path(self) -> Path:
        """Folder of the model, fetched if need be.

        Raises:
          UserError: its vectors are imported, so there is no model.
        """
        if self.settings.model is None:
            raise UserError(
                f"teachers.{self.name}: no model is given, so its vectors must be imported:"
                f" jasper vectors import RECIPE {self.name} FILE"
            )
        return resolve_model(self.settings.model, self.settings.revision, progress=self._progress)

    @cached_property
    def source(self) -> ModelFolder | Path | None:
        """What the model's folder says. The path alone where another library reads it (``backend: torch``), None where
        vectors are imported."""
        settings = self.settings
        if settings.model is None:
            return None
        if self._describe and not is_here(settings.model, settings.revision):
            described = published(settings.model, settings.causal)
            if described is not None:
                return described
        return self.path if settings.backend == "torch" else read_model_folder(self.path, causal=settings.causal)

    @cached_property
    def dim(self) -> int:
        """T, the dimension of its vectors."""
        return teacher_dim(self.settings, self.source)

    @cached_property
    def spec(self) -> VectorSpec:
        """What its vectors depend on, the checksums of its weights included."""
        return teacher_spec(self.settings, self.source)

    def load(self) -> Embedder:
        """The model with its weights, ready to encode."""
        return load_teacher(self.settings, self.path if self.source is None else self.source)

    def encoder(self) -> TeacherEncoder | TorchEncoder:
        """``(texts, kinds) -> [n, T]``; weights are loaded when a text is first encoded."""
        if self.settings.backend == "torch":
            return TorchEncoder(self.settings, self.path)
        return TeacherEncoder(self.load)
