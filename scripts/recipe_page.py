"""Write docs/recipe.md: every key of a recipe with its type, default and a sentence, from the typed recipe itself.

python scripts/recipe_page.py
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from jasper_jax.losses.terms import TERMS
from jasper_jax.recipe import config, config_evaluation, config_sources, config_training
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_training import Losses

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"
HEAD = """# Every key of a recipe

Written by `scripts/recipe_page.py` from the typed recipe (`jasper_jax/recipe/`); change the sentences there. `required`
has no default. `jasper check RECIPE` prints a recipe with all its values.
"""


def sentences() -> dict[tuple[str, str], str]:
    """(class, key) -> the docstring below the key."""
    found: dict[tuple[str, str], str] = {}
    for module in (config, config_evaluation, config_sources, config_training):
        for node in ast.parse(inspect.getsource(module)).body:
            body = node.body if isinstance(node, ast.ClassDef) else []
            for field, text in pairwise(body):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(field, ast.AnnAssign) and isinstance(value, ast.Constant):
                    found[getattr(node, "name", ""), ast.unparse(field.target)] = inspect.cleandoc(str(value.value))
    for name, term in TERMS.items():
        for key in ("", *term.settings):
            found["Losses", key or name] = term.about.get(key, "")
    return found


def parts(annotation: Any) -> Iterator[Any]:
    """The types in an annotation."""
    yield annotation
    for part in typing.get_args(annotation):
        if not isinstance(part, str):
            yield from parts(part)


def kind(annotation: Any) -> str:
    """A type as a reader of YAML knows it."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind(inside[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in inside if part is not type(None))
    if origin is list:
        return f"list of {kind(inside[0])}"
    if origin is dict:
        return f"mapping to {kind(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}
    return names.get(annotation, str(annotation))


def default(field: Any) -> str:
    """The value of a key that a recipe leaves out."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value == [] or value == {} or value is PydanticUndefined:
        return "" if isinstance(value, BaseModel) else "none"
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def section(model: type[BaseModel], about: dict[tuple[str, str], str]) -> str:
    """A section of the recipe as a table of its keys. KeyError for one without a sentence."""
    title = " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())
    lines = [
        f"## {model.__name__}",
        "",
        re.sub("``", "`", title),
        "",
        "| key | type | default | |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        text = " ".join(about[model.__name__, name].split()).replace("``", "`").replace("|", "\\|")
        annotation = kind(field.annotation).replace("|", "\\|")
        lines.append(f"| `{name}` | {annotation} | {default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def sections() -> list[type[BaseModel]]:
    """Recipe, then the sections in it, in the order in which a reader meets them."""
    found: list[type[BaseModel]] = [Recipe]
    for model in found:
        for field in model.model_fields.values():
            for part in parts(field.annotation):
                if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
                    found.append(part)
    return found


def page() -> str:
    """The whole page."""
    about = sentences()
    return "\n".join([HEAD, *(section(model, about) for model in sections())])


if __name__ == "__main__":
    assert Losses in sections()
    PAGE.write_text(page(), "utf-8")
