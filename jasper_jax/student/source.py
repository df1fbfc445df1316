"""The folders of the student's checkpoint, tokenizer and vision model, each located and read once.

Weights are not read here, but in :func:`jasper_jax.student.start.starting_params`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from jasper_jax.assets.models import is_here, resolve_model
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.published import describe as published
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.recipe.config import Student as StudentSettings
from jasper_jax.vision.load import VisionFolder, described_vision, read_vision
from jasper_jax.vision.vision_model import with_image_tokens


class StudentSource:
    """The folders that ``student`` of a recipe names."""

    def __init__(self, settings: StudentSettings, *, describe: bool = False, progress: bool = True):
        """``describe``: use the published description of a model that is not on this machine instead of fetching it."""
        self.settings, self._describe, self._progress = settings, describe, progress

    @cached_property
    def path(self) -> Path:
        """Folder of ``student.model``, or of ``student.tokenizer`` if weights are random; fetched if necessary."""
        name = self.settings.model or self.settings.tokenizer
        assert name is not None
        return resolve_model(name, self.settings.revision, progress=self._progress)

    @cached_property
    def folder(self) -> ModelFolder | None:
        """The folder of ``student.model`` as read; None if weights are random."""
        settings = self.settings
        if settings.model is None:
            return None
        absent = self._describe and not is_here(settings.model, settings.revision)
        if absent and (description := published(settings.model, settings.causal)):
            return description
        return read_model_folder(self.path, causal=settings.causal)

    @property
    def described(self) -> bool:
        """Whether only the model's published description is known: there are no weights and no tokenizer."""
        return self.folder is not None and self.folder.described

    @cached_property
    def vision(self) -> VisionFolder | None:
        """The folder of ``student.vision.model`` as read; None for a student of texts alone."""
        settings = self.settings.vision
        if settings is None:
            return None
        absent = self._describe and not is_here(settings.model, settings.revision)
        if absent and (description := described_vision(settings)):
            return description
        return read_vision(settings, resolve_model(settings.model, settings.revision, progress=self._progress))

    @property
    def tokenizer_path(self) -> Path:
        """The folder of its ``tokenizer.json``."""
        return self.path if self.folder is None else self.folder.encoder_path

    def tokenizer(self, max_length: int) -> Tokenizer:
        """The student's tokenizer, truncating at ``max_length``; with image tokens if the student takes images."""
        tokenizer = Tokenizer.load(
            self.tokenizer_path,
            max_length,
            lower_case=self.folder is not None and self.folder.lower_case,
            append_eos=self.settings.append_eos,
        )
        return with_image_tokens(tokenizer) if self.settings.vision is not None else tokenizer
