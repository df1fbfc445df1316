"""The text store and the pair store of a recipe: their folders, and each built when first opened."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from jasper_jax.data.pairs import PairStore, build_pair_store
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_sources import Images, Texts
from jasper_jax.recipe.load import stores_dir
from jasper_jax.runtime import processes

S = TypeVar("S")


class DataStores:
    """The stores of ``recipe.texts`` and ``recipe.images``, in ``text_folder`` and ``pair_folder``."""

    def __init__(self, recipe: Recipe, *, progress: bool = True):
        self._recipe, self.progress = recipe, progress
        self.text_folder = stores_dir(recipe) / "texts"
        self.pair_folder = stores_dir(recipe) / "images"

    def texts(self) -> TextStore:
        return self._open(build_text_store, self._recipe.texts, self.text_folder)

    def pairs(self) -> PairStore:
        return self._open(build_pair_store, self._recipe.images, self.pair_folder)

    def _open(self, build: Callable[..., S], settings: Texts | Images | None, folder: Path) -> S:
        """The store, built if missing; of several processes the first builds, and the others then open it."""
        assert settings is not None
        seed = self._recipe.seed if settings.seed is None else settings.seed
        build_or_open = partial(build, settings, folder, seed, progress=self.progress)
        if processes.count() > 1:
            processes.first_does(build_or_open)
        return build_or_open()
