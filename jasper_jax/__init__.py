"""Distil strong text-embedding models into one small student with short vectors, in JAX (arXiv 2412.19048).

The public names, imported when first used so that ``import jasper_jax`` stays light::

    from jasper_jax import Embedder, distil
    from jasper_jax.losses import cosine_loss, similarity_loss, relative_loss
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jasper_jax.commands.distil import Distilled, distil
    from jasper_jax.commands.evaluate import evaluate_run
    from jasper_jax.commands.export import export_run
    from jasper_jax.commands.stores import embed_teachers
    from jasper_jax.commands.train import train_stages
    from jasper_jax.embedder import Embedder
    from jasper_jax.losses import cosine_loss, distillation_losses, relative_loss, similarity_loss
    from jasper_jax.recipe.config import Recipe
    from jasper_jax.recipe.load import load_recipe
    from jasper_jax.run import Run
    from jasper_jax.runtime.errors import Interrupted, UserError

__version__ = "0.1.0"

_MODULES = {
    "commands.distil": ("Distilled", "distil"),
    "commands.evaluate": ("evaluate_run",),
    "commands.export": ("export_run",),
    "commands.stores": ("embed_teachers",),
    "commands.train": ("train_stages",),
    "embedder": ("Embedder",),
    "losses": ("cosine_loss", "distillation_losses", "relative_loss", "similarity_loss"),
    "recipe.config": ("Recipe",),
    "recipe.load": ("load_recipe",),
    "run": ("Run",),
    "runtime.errors": ("Interrupted", "UserError"),
}

__all__ = [
    "Distilled",
    "Embedder",
    "Interrupted",
    "Recipe",
    "Run",
    "UserError",
    "cosine_loss",
    "distil",
    "distillation_losses",
    "embed_teachers",
    "evaluate_run",
    "export_run",
    "load_recipe",
    "relative_loss",
    "similarity_loss",
    "train_stages",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"jasper_jax.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
