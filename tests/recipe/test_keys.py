"""Every key of a recipe is read somewhere in the package: a key that nothing reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import jasper_jax
from jasper_jax.losses.terms import TERMS
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.config_sources import PAIR_FILE_KINDS

PACKAGE = Path(jasper_jax.__file__).parent
DECLARATIONS = {PACKAGE / "recipe" / name for name in ("config.py", "config_sources.py")}
"""Their own validators do not count as a use."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, at any depth of ``list[...]``, ``... | None`` and ``Annotated[...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """``model`` and every model below it, by name."""
    known: dict[str, type[BaseModel]] = {}
    waiting = [model]
    while waiting:
        section = waiting.pop()
        if section.__name__ not in known:
            known[section.__name__] = section
            waiting += [m for field in section.model_fields.values() for m in models_in(field.annotation)]
    return known


def settings_read(files: Iterable[Path]) -> set[str]:
    """``x`` of every ``...["x"]`` that the files read."""
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    subscripts = (node.slice for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load))
    return {key.value for key in subscripts if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def attributes_read(files: list[Path]) -> set[str]:
    """``x`` of every ``....x`` that the files read."""
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


SECTIONS = sections(Recipe)
READ = attributes_read([path for path in PACKAGE.rglob("*.py") if path not in DECLARATIONS])


def test_all_sections_are_looked_at() -> None:
    assert {"Recipe", "Texts", "TextSource", "Augment", "ImageSource", "Vision", "Stage", "Training"} <= set(SECTIONS)


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_key_is_read(name: str) -> None:
    # The keys of Losses are the rows of a table, each of which is computed, and the settings that the rows read.
    switches = {term.learned_if for term in TERMS.values()}
    table = {*TERMS, *switches, *settings_read((PACKAGE / "losses").glob("*.py"))} if name == "Losses" else set()
    if name == "PairSource":
        table = set(PAIR_FILE_KINDS)  # read by the name of the one that is set
    unread = [key for key in SECTIONS[name].model_fields if key not in READ | table]
    assert not unread, f"{name}: nothing in the package reads {', '.join(unread)}"
