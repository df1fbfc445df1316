"""A run: a recipe with its folder, stores and models."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stage_data import needs
from jasper_jax.student.source import StudentSource
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.stores import TeacherVectors


class Run:
    """The objects that commands use: ``run_folder``, ``stages``, ``data`` (texts and pairs), ``teachers`` (models),
    ``vectors``, and ``student`` (the folders it starts from). Each reads its files on first use, and once.
    """

    def __init__(self, recipe: Recipe, *, progress: bool = True, describe: bool = False):
        """``describe``: use the published sizes of models that are not on this machine instead of fetching them, to
        check or plan the run."""
        self.recipe, self.progress, self.describe = recipe, progress, describe
        self.run_folder = RunFolder(recipe)
        self.stages = self.run_folder.stages
        self.data = DataStores(recipe, progress=progress)
        self.teachers = tuple(
            TeacherModel(settings, describe=describe, progress=progress) for settings in recipe.teachers
        )
        self.vectors = TeacherVectors(recipe, self.teachers, progress=progress)
        self.student = StudentSource(recipe.student, describe=describe, progress=progress)

    @property
    def folder(self) -> Path:
        """The path of ``run_folder``."""
        return self.run_folder.path

    @property
    def trains_on_images(self) -> bool:
        """Whether a stage learns from images."""
        return needs(self.stages, "images")

    @property
    def needs_vectors(self) -> bool:
        """Whether some stage uses teacher vectors."""
        return self.vectors.needed

    @property
    def teacher_dim(self) -> int | None:
        """Dimension of the concatenated teachers; None if no stage uses them."""
        return self.vectors.dim
