"""Read a recipe: YAML, then ``key=value`` overrides, then the typed classes of ``jasper_jax.recipe.config``.

Every mistake in a recipe ends in a ``UserError`` of one line with the key, the value and the values allowed.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from jasper_jax.recipe.checks import check_recipe
from jasper_jax.recipe.config import Export, Recipe
from jasper_jax.runtime.errors import UserError, first_line, nearest
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.remote import is_remote, read_text
from jasper_jax.runtime.text_files import text_of


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in ``path`` with ``overrides`` (``"stages.2.steps=50"``), which always win.

    ``path`` is a file, or an address in object storage such as ``gs://bucket/recipe.yaml``.

    Raises:
      UserError: the file is missing or not YAML, an override is malformed, a key is unknown, a value is wrong.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    try:
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        hint = "; $NAME in a path is an environment variable" if "Interpolation" in str(error) else ""
        raise UserError(f"{path}: {first_line(error)}{hint}") from None
    return parse_recipe(plain, where=str(path))


def load_export(overrides: Sequence[str]) -> Export:
    """The settings of ``export.onnx*`` for an exported folder: the defaults with ``overrides``.

    Raises:
      UserError: an override of another key, or a value that is not allowed.
    """
    tree = OmegaConf.create({})
    keys = [f"export.{key}" for key in Export.model_fields if key.startswith("onnx_")]
    for override in overrides:
        if override.partition("=")[0].strip() not in keys:
            raise UserError(f"override {override!r}: of an exported folder only {' and '.join(keys)} can be set")
        _apply(tree, override)
    try:
        return _ExportOnly.model_validate(OmegaConf.to_container(tree)).export
    except ValidationError as error:
        raise UserError(describe(error, "--onnx")) from None


class _ExportOnly(BaseModel):
    export: Export = Export()


def parse_recipe(plain: Any, where: str) -> Recipe:
    """Validate a plain tree (from YAML or JSON); ``where`` names its origin in errors."""
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise UserError(describe(error, where)) from None
    check_recipe(recipe)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with all defaults; reading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def run_dir(recipe: Recipe) -> Path:
    """The folder of the run."""
    return user_path(recipe.run_dir, "run_dir") if recipe.run_dir else Path("runs") / recipe.name


def stores_dir(recipe: Recipe) -> Path:
    """The folder of the stores of texts, images and teacher vectors: the run's own, or one that runs share."""
    return user_path(recipe.stores, "stores") if recipe.stores else run_dir(recipe)


def _read_yaml(path: str | Path) -> DictConfig:
    if is_remote(path):
        text = read_text(str(path))
    else:
        file = user_path(path, "the recipe")
        if not file.is_file():
            raise UserError(f"{path}: no such file; expected a YAML recipe, as in configs/")
        text = text_of(file)
    try:
        tree = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"{path}: expected a mapping of keys to values: {first_line(error)}") from None
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: expected a mapping of keys to values, got a list")
    return tree


def _apply(tree: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"override {override!r}: expected key=value, e.g. stages.2.steps=50")
    try:
        parsed = OmegaConf.create({"value": None} if not text.strip() else f"value: {text}")
        value = OmegaConf.to_container(parsed)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
        raise UserError(f"override {override!r}: {text[:60]!r} is not a YAML value") from None
    parts = key.replace("[", ".").replace("]", "").split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, ListConfig):
            index = int(part) if part.lstrip("-").isdigit() else None
            if index is None or not -len(node) <= index < len(node):
                where = ".".join(parts[: depth + 1])
                raise UserError(f"override {override!r}: {where} does not exist; allowed: 0 to {len(node) - 1}")
            parts[depth] = str(index % len(node))
            node = node if last else node[index]
        elif isinstance(node, DictConfig):
            if not last:
                child = node.get(part)
                node = OmegaConf.create({}) if child is None else child
        else:
            raise UserError(f"override {override!r}: {'.'.join(parts[:depth])} is a value without keys")
    try:
        OmegaConf.update(tree, ".".join(parts), value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise UserError(f"override {override!r}: {first_line(error)}") from None


def describe(error: ValidationError, where: str) -> str:
    """One line with all errors of pydantic."""
    return f"{where}: {'; '.join(dict.fromkeys(map(_message, error.errors())))}"


def _message(item: Any) -> str:
    loc = _dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        allowed = _fields_at(item["loc"][:-1])
        hint = nearest(str(item["loc"][-1]), allowed) or (f"; keys here: {', '.join(allowed)}" if allowed else "")
        return f"{loc}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{loc}: this key is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{loc}: {message}" if loc else message
    value = item.get("input")
    shown = type(value).__name__ if value and isinstance(value, dict | list) else repr(value)
    if item["type"] == "string_pattern_mismatch":
        message = "expected letters, digits, dots, hyphens and underscores, the first a letter or digit"
    return f"{loc}: {shown[:80]} is not allowed: {message[0].lower()}{message[1:]}"


def _dotted(loc: Sequence[int | str]) -> str:
    text = ""
    for part in loc:
        if part != "[key]":  # pydantic's mark that the key itself is wrong
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text if text.isprintable() else repr(text)[1:-1]


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """The keys of the section at ``loc``, from the annotations."""
    kind: Any = Recipe
    for part in loc:
        if isinstance(part, str) and isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(part)
            kind = field.annotation if field else None
        else:
            kind = next(reversed(typing.get_args(kind)), None)
        kind = _section_in(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _section_in(kind: Any) -> Any:
    """Strip ``Annotated`` and ``| None`` from an annotation, keeping list and dict."""
    if typing.get_origin(kind) is typing.Annotated:
        return _section_in(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _section_in(next(a for a in typing.get_args(kind) if a is not type(None)))
    return kind
