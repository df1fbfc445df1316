"""A run: one recipe, its folder, its stores and its models, each an object of its own."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stages import needs
from jasper_jax.student.source import StudentSource
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.stores import TeacherVectors


class Run:
    """The run of ``recipe``: what commands compose their work of. Nothing is opened, built or read before it is asked
    for, and nothing is read twice.

    ``run_folder`` its folder, ``data`` its texts and pairs, ``teachers`` their models, ``vectors`` their vectors,
    ``student`` where the student starts, ``stages`` what is to be trained.
    """

    def __init__(self, recipe: Recipe, *, progress: bool = True, describe: bool = False):
        """``describe``: take what is published about a model that is not here instead of fetching gigabytes; such a
        run can be checked and planned, not trained."""
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
        """Whether any stage is taught by teacher vectors."""
        return self.vectors.needed

    @property
    def teacher_dim(self) -> int | None:
        """Dimension of the concatenated teachers, None where no stage is taught by them."""
        return self.vectors.dim


def cache_programs() -> None:
    """Keep compiled programs on disk between runs (``JASPER_CACHE``, else the user's cache folder)."""
    import jax

    from jasper_jax.assets.cache import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
