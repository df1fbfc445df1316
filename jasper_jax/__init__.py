"""Distil strong text-embedding models into one small student with short vectors, in JAX (arXiv 2412.19048).

The public names, imported when first used so that ``import jasper_jax`` stays light::

    from jasper_jax import Embedder, load_recipe, run_all
    from jasper_jax.losses import cosine_loss, similarity_loss, relative_loss
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jasper_jax.commands import embed_teachers, evaluate_run, export_run, run_all, train_stages
    from jasper_jax.embedder import Embedder
    from jasper_jax.losses import cosine_loss, distillation_losses, relative_loss, similarity_loss
    from jasper_jax.recipe.config import Recipe
    from jasper_jax.recipe.load import load_recipe
    from jasper_jax.runtime.errors import UserError

__version__ = "0.1.0"

_PLACES = {
    "Embedder": ("jasper_jax.embedder", "Embedder"),
    "Recipe": ("jasper_jax.recipe.config", "Recipe"),
    "UserError": ("jasper_jax.runtime.errors", "UserError"),
    "cosine_loss": ("jasper_jax.losses", "cosine_loss"),
    "distillation_losses": ("jasper_jax.losses", "distillation_losses"),
    "embed_teachers": ("jasper_jax.commands", "embed_teachers"),
    "evaluate_run": ("jasper_jax.commands", "evaluate_run"),
    "export_run": ("jasper_jax.commands", "export_run"),
    "load_recipe": ("jasper_jax.recipe.load", "load_recipe"),
    "relative_loss": ("jasper_jax.losses", "relative_loss"),
    "run_all": ("jasper_jax.commands", "run_all"),
    "similarity_loss": ("jasper_jax.losses", "similarity_loss"),
    "train_stages": ("jasper_jax.commands", "train_stages"),
}

__all__ = [
    "Embedder",
    "Recipe",
    "UserError",
    "cosine_loss",
    "distillation_losses",
    "embed_teachers",
    "evaluate_run",
    "export_run",
    "load_recipe",
    "relative_loss",
    "run_all",
    "similarity_loss",
    "train_stages",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
