"""Optional packages that a run of a recipe needs; ``jasper check`` and ``jasper plan`` need none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.stage_data import needs
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime.remote import CLIENTS

LOGGERS = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}

ONNX_PACKAGES = ("torch", "sentence_transformers", "onnx", "onnxscript", "onnxruntime")


def needed_packages(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """``(key, extra, package)`` for every optional package that a run of the recipe imports."""
    if recipe.texts and recipe.texts.near_duplicates is not None:
        yield "texts.near_duplicates", "dedup", "datasketch"
    for number, source in enumerate(recipe.texts.sources if recipe.texts else ()):
        if source.hf is not None:
            yield f"texts.sources[{number}].hf", "datasets", "datasets"
    if recipe.images is not None and needs(resolve_stages(recipe), "images"):
        yield "images", "vision", "PIL"
        for number, source in enumerate(recipe.images.sources):
            if source.hf is not None:
                yield f"images.sources[{number}].hf", "datasets", "datasets"
            if source.asset is not None:
                yield f"images.sources[{number}].asset", "vision", "resvg_py"
    for teacher in recipe.teachers:
        if teacher.backend == "torch":
            yield f"teachers.{teacher.name}.backend", "export", "sentence_transformers"
    for logger in recipe.training.loggers:
        yield "training.loggers", logger, LOGGERS[logger]
    if recipe.export.onnx:
        yield from (("export.onnx", "onnx", package) for package in ONNX_PACKAGES)
    protocol = (recipe.mirror or "").partition("://")[0]
    if protocol in CLIENTS:
        yield ("mirror", *CLIENTS[protocol])


def missing_extras(recipe: Recipe) -> list[str]:
    """A line for each extra that a run of the recipe needs and that is not installed, with the keys that need it."""
    keys: dict[str, dict[str, None]] = {}
    for key, extra, package in needed_packages(recipe):
        if importlib.util.find_spec(package) is None:
            keys.setdefault(extra, {})[key] = None
    return [
        f"running this recipe needs the extra {extra} ({', '.join(needing)}): pip install 'jasper-jax[{extra}]'"
        for extra, needing in keys.items()
    ]
