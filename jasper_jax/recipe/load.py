"""Read a recipe: YAML or a mapping, then overrides, then ``${key}``, then the typed classes of
``jasper_jax.recipe.config``.

Every mistake in a recipe ends in a ``UserError`` of one line with the key, the value and the values allowed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.representer import RepresenterError

from jasper_jax.recipe.checks import check_recipe
from jasper_jax.recipe.config import Export, Recipe
from jasper_jax.recipe.references import resolve_references
from jasper_jax.recipe.yaml_text import dump_yaml, parse_yaml
from jasper_jax.runtime.errors import UserError, first_line, nearest
from jasper_jax.runtime.paths import folder_to_make, user_path
from jasper_jax.runtime.remote import is_remote, read_text
from jasper_jax.runtime.text_files import text_of

HEADER = "# The resolved recipe of this run, written by jasper. Change the recipe it came from, not this file.\n"
"""The first line of a run's recipe.yaml, by which a folder and a mirror are known to be a run's."""
S = TypeVar("S", bound=BaseModel)


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """The recipe ``source`` with ``overrides``, which always win.

    Args:
      source: a YAML file, an address in object storage such as ``gs://bucket/recipe.yaml``, the keys of a recipe as a
        mapping, or a recipe.
      overrides: ``["stages.2.steps=50"]`` or ``{"stages.2.steps": 50}``.

    Raises:
      UserError: the file is missing or not YAML, an override is malformed, a key is unknown, a value is wrong.
    """
    where = str(source) if isinstance(source, str | Path) else "the recipe"
    tree = _read_yaml(source) if isinstance(source, str | Path) else _plain(source, where)
    if isinstance(overrides, Mapping):
        for key, value in _plain(overrides, "the overrides").items():
            _set(tree, str(key), value, f"override {key!r}")
    else:
        for override in overrides:
            _apply(tree, override)
    return parse_recipe(resolve_references(tree, where), where=where)


def load_export(overrides: Sequence[str]) -> Export:
    """The settings of ``export.onnx*`` for an exported folder: the defaults with ``overrides``.

    Raises:
      UserError: an override of another key, or a value that is not allowed.
    """
    tree: dict[Any, Any] = {}
    keys = [f"export.{key}" for key in Export.model_fields if key.startswith("onnx_")]
    for override in overrides:
        if override.partition("=")[0].strip() not in keys:
            raise UserError(f"override {override!r}: of an exported folder only {' and '.join(keys)} can be set")
        _apply(tree, override)
    return parse_section(Export, "export", tree.get("export", {}), "--onnx")


def parse_section(section: type[S], key: str, tree: Any, where: str) -> S:
    """Validate the plain tree of one ``section``, under ``key`` of a recipe, by itself; ``where`` names its origin."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(describe(error, where, (key,))) from None


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
    return dump_yaml(recipe.model_dump(mode="json"))


def run_dir(recipe: Recipe) -> Path:
    """The folder of the run."""
    return folder_to_make(recipe.run_dir, "run_dir") if recipe.run_dir else Path("runs") / recipe.name


def stores_dir(recipe: Recipe) -> Path:
    """The folder of the stores of texts, images and teacher vectors: the run's own, or one that runs share."""
    return folder_to_make(recipe.stores, "stores") if recipe.stores else run_dir(recipe)


def _read_yaml(path: str | Path) -> dict[Any, Any]:
    if is_remote(path):
        text = read_text(str(path))
    else:
        file = user_path(path, "the recipe")
        if not file.is_file():
            raise UserError(f"{path}: no such file; expected a YAML recipe, as in configs/")
        text = text_of(file)
    try:
        tree = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, got a {type(tree).__name__}")
    return tree


def _plain(source: Any, where: str) -> dict[Any, Any]:
    """``source`` as a copy that a YAML file could have given; paths become strings."""
    if isinstance(source, Recipe):
        return source.model_dump(mode="json")
    if not isinstance(source, Mapping):
        raise UserError(
            f"{where}: expected a path, a mapping of keys to values or a Recipe, got a {type(source).__name__}"
        )
    try:
        return parse_yaml(dump_yaml(dict(source)))
    except RepresenterError as error:
        value = error.args[-1]
        raise UserError(
            f"{where}: {str(value)[:80]!r} is a {type(value).__name__}; expected text, paths, numbers, booleans, None,"
            " and lists and mappings of them"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: a value that no recipe can have: {first_line(error)}") from None


def _apply(tree: dict[Any, Any], override: str) -> None:
    """Set the value of ``key=value`` in ``tree``."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"override {override!r}: expected key=value, e.g. stages.2.steps=50")
    try:
        value = parse_yaml(f"value: {text}")["value"] if text.strip() else None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"override {override!r}: {text[:60]!r} is not a YAML value") from None
    _set(tree, key, value, f"override {override!r}")


def _set(tree: dict[Any, Any], key: str, value: Any, where: str) -> None:
    """Set the value of ``key``, such as ``stages.2.steps``, in ``tree``; sections on the way to it are made."""
    *parents, last = key.replace("[", ".").replace("]", "").split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        index = _index(node, part, ".".join(parents[: depth + 1]), where)
        if isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]
        if not isinstance(node, dict | list):
            raise UserError(f"{where}: {'.'.join(parents[: depth + 1])} is a value without keys")
    node[_index(node, last, key, where)] = value


def _index(node: Any, part: str, path: str, where: str) -> Any:
    """``part`` of the key ``path`` as an index of ``node``, a dict or a list."""
    if isinstance(node, dict):
        return part
    index = int(part) if part.removeprefix("-").isdecimal() and len(part) < 10 else len(node)
    if not -len(node) <= index < len(node):
        allowed = f"allowed: 0 to {len(node) - 1}" if node else "the list is empty"
        raise UserError(f"{where}: {path} does not exist; {allowed}")
    return index


def describe(error: ValidationError, where: str, above: tuple[str, ...] = ()) -> str:
    """One line with all errors of pydantic; ``above``: the keys of a recipe that lead to what was validated."""
    items = ({**item, "loc": (*above, *item["loc"])} for item in error.errors())
    return f"{where}: {'; '.join(dict.fromkeys(map(_message, items)))}"


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
