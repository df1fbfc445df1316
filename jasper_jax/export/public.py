"""What an exported folder, which goes to the public, says of the recipe: ids and base names, no paths and addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jasper_jax.assets.models import HUB_ID
from jasper_jax.encoders.hf_config import to_publish
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.places import IDS, PATHS, RUNS
from jasper_jax.runtime.paths import user_path


def public_recipe(recipe: Recipe) -> Any:
    """The recipe as JSON, without the keys of ``places.RUNS`` and with each path reduced to its last part."""
    return _public(recipe.model_dump(mode="json", exclude=set(RUNS)))


def public_name(name: str) -> str:
    """An id (``org/name``, an asset's name) as it is; of a path, also one with two parts that exists, the last part."""
    return _last_part(name) if _is_path(name) else name


def is_hub_id(name: str) -> bool:
    """Whether ``name`` stands for a model of the hub, and not for a folder of this machine."""
    return bool(HUB_ID.fullmatch(name)) and not _is_path(name)


def _public(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        value = to_publish(value) if key == "config" else value  # of the student, as Hugging Face has it
        return {name: _public(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if key in PATHS:
        return _last_part(value)
    return public_name(value) if key in IDS else value


def _is_path(name: str) -> bool:
    parts = re.split(r"[\\/]+", name)
    marked = name.startswith(("/", "~", ".")) or any(mark in name for mark in ("$", "\\", "://"))
    return marked or len(parts) > 2 or _exists(name, parts)


def _exists(name: str, parts: list[str]) -> bool:
    return len(parts) == 2 and user_path(name, "model").is_dir()


def _last_part(path: str) -> str:
    return Path(path.replace("\\", "/")).name
