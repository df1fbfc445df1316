"""The text store and the pair store of a recipe: their folders, and each built when first opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jasper_jax.data.pairs import PairStore, build_pair_store
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.recipe.config import Recipe
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
        """The text store, built if missing."""
        settings = self._recipe.texts
        assert settings is not None
        seed = self._seed(settings.seed)
        return _built(lambda: build_text_store(settings, self.text_folder, seed, progress=self.progress))

    def pairs(self) -> PairStore:
        """The store of image-caption pairs, built if missing."""
        settings = self._recipe.images
        assert settings is not None
        seed = self._seed(settings.seed)
        return _built(lambda: build_pair_store(settings, self.pair_folder, seed, progress=self.progress))

    def _seed(self, own: int | None) -> int:
        return self._recipe.seed if own is None else own


def _built(build: Callable[[], S]) -> S:
    """What ``build`` returns; of several processes the first builds, and the others then open."""
    if processes.count() > 1:
        processes.first_does(build)
    return build()
