"""Reading a recipe: YAML, then ``key=value`` overrides, then the typed classes of ``jasper_jax.recipe.config``.

Every way a recipe can be wrong ends in one ``UserError`` line that names the key, the value
and what is allowed.
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

from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.remote import is_remote, read_text


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in ``path`` with ``overrides`` (``"stages.2.steps=50"``) applied; overrides always win.

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
        raise UserError(f"{path}: {_first_line(error)}") from None
    return parse_recipe(plain, where=str(path))


def parse_recipe(plain: Any, where: str) -> Recipe:
    """A plain tree (from YAML or JSON) as a :class:`Recipe`; ``where`` names its origin in errors."""
    try:
        recipe = Recipe.model_validate(plain)
    except ValidationError as error:
        raise UserError(describe(error, where)) from None
    from jasper_jax.recipe.checks import check_recipe

    check_recipe(recipe)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out; reading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def run_dir(recipe: Recipe) -> Path:
    """The folder of the run."""
    return Path(recipe.run_dir) if recipe.run_dir else Path("runs") / recipe.name


def stores_dir(recipe: Recipe) -> Path:
    """The folder of the stores of texts, pictures and teacher vectors: the run's own, or one that runs share."""
    return Path(recipe.stores) if recipe.stores else run_dir(recipe)


def _read_yaml(path: str | Path) -> DictConfig:
    if is_remote(path):
        source: Path | io.StringIO = io.StringIO(read_text(str(path)))
    else:
        source = Path(path)
        if not source.is_file():
            raise UserError(f"{path}: no such recipe; recipes are YAML files, configs/ has examples")
    try:
        tree = OmegaConf.load(source)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from None
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is a {type(tree).__name__}")
    return tree


def _apply(tree: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value, e.g. stages.2.steps=50")
    try:
        parsed = OmegaConf.create({"value": None} if not text.strip() else f"value: {text}")
        value = OmegaConf.to_container(parsed)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
        raise UserError(f"override {override!r}: {text[:60]!r} is not a YAML value") from None
    parts = key.replace("[", ".").replace("]", "").split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = ".".join(parts[: depth + 1])
        if isinstance(node, ListConfig):
            index = int(part) if part.lstrip("-").isdigit() else None
            if index is None or not -len(node) <= index < len(node):
                raise UserError(f"override {override!r}: {where} does not exist; allowed: 0 to {len(node) - 1}")
            parts[depth] = str(index % len(node))
            node = node if last else node[index]
        elif isinstance(node, DictConfig):
            node = node if last else node.get(part, OmegaConf.create({}))
            if node is None:
                node = OmegaConf.create({})
        else:
            raise UserError(f"override {override!r}: {'.'.join(parts[:depth])} is a value, it has no keys")
    try:
        OmegaConf.update(tree, ".".join(parts), value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise UserError(f"override {override!r}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def describe(error: ValidationError, where: str) -> str:
    """One line for the first mistake pydantic found, with how many more there are."""
    found = error.errors()
    line = f"{where}: {_describe_one(found[0])}"
    return line + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def _describe_one(item: Any) -> str:
    loc = _dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(item["loc"][:-1])
        hint = nearest(str(item["loc"][-1]), known) or (f"; keys here: {', '.join(known)}" if known else "")
        return f"{loc}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{loc}: this key is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{loc}: {message}" if loc else message
    value = item.get("input")
    shown = type(value).__name__ if value and isinstance(value, dict | list) else repr(value)
    if item["type"] == "string_pattern_mismatch":
        message = "a name has letters, digits, dots, hyphens and underscores, and begins with a letter or digit"
    return f"{loc}: {shown[:80]} is not allowed: {message[0].lower()}{message[1:]}"


def _dotted(loc: Sequence[int | str]) -> str:
    text = ""
    for part in loc:
        if part == "[key]":  # pydantic's mark that the key itself is wrong
            continue
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _fields_at(loc: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at ``loc``, found by walking the annotations."""
    kind: Any = Recipe
    for part in loc:
        if isinstance(part, str) and isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(part)
            kind = field.annotation if field else None
        else:
            kind = next((a for a in typing.get_args(kind)[::-1]), None)
        kind = _section_in(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _section_in(kind: Any) -> Any:
    """Strip ``Annotated`` and ``| None`` from an annotation, keeping list and dict."""
    if typing.get_origin(kind) is typing.Annotated:
        return _section_in(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _section_in(next(a for a in typing.get_args(kind) if a is not type(None)))
    return kind
