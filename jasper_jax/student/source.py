"""Where the student starts: the folders of its checkpoint, its tokenizer and its vision model, located and read once.

Weights are not read here: :func:`jasper_jax.student.start.starting_params` does that, once in a run's life.
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
    """What ``student`` of a recipe names."""

    def __init__(self, settings: StudentSettings, *, describe: bool = False, progress: bool = True):
        """``describe``: take what is published about a model that is not here instead of fetching it."""
        self.settings, self._describe, self._progress = settings, describe, progress

    @cached_property
    def path(self) -> Path:
        """Folder of ``student.model``, or of ``student.tokenizer`` where weights are random; fetched if need be."""
        name = self.settings.model or self.settings.tokenizer
        assert name is not None
        return resolve_model(name, self.settings.revision, progress=self._progress)

    @cached_property
    def folder(self) -> ModelFolder | None:
        """What the folder of ``student.model`` says; None where weights are random."""
        settings = self.settings
        if settings.model is None:
            return None
        if self._describe and not is_here(settings.model, settings.revision):
            described = published(settings.model, settings.causal)
            if described is not None:
                return described
        return read_model_folder(self.path, causal=settings.causal)

    @property
    def described(self) -> bool:
        """Whether only what is published about the model is known: there are no weights and no tokenizer."""
        return self.folder is not None and self.folder.described

    @cached_property
    def vision(self) -> VisionFolder | None:
        """What the folder of ``student.vision.model`` says; None where the student does not see."""
        settings = self.settings.vision
        if settings is None:
            return None
        if self._describe and not is_here(settings.model, settings.revision):
            described = described_vision(settings)
            if described is not None:
                return described
        return read_vision(settings, resolve_model(settings.model, settings.revision, progress=self._progress))

    def tokenizer(self, max_length: int) -> Tokenizer:
        """The student's tokenizer, cutting at ``max_length``; with the image tokens where the student sees."""
        path, lower_case = (
            (self.path, False) if self.folder is None else (self.folder.encoder_path, self.folder.lower_case)
        )
        tokenizer = Tokenizer.load(path, max_length, lower_case=lower_case, append_eos=self.settings.append_eos)
        return with_image_tokens(tokenizer) if self.settings.vision is not None else tokenizer
