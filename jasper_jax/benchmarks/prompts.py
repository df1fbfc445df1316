"""Which of a model's prompts precedes the texts of an MTEB task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mteb.abstasks.task_metadata import TaskType  # pyright: ignore[reportMissingImports]
from mteb.models.abs_encoder import get_prompt_name  # pyright: ignore[reportMissingImports]
from mteb.types import PromptType  # pyright: ignore[reportMissingImports]

from jasper_jax.benchmarks.tasks import task_names
from jasper_jax.encoders.prompts import PROMPT_NAMES
from jasper_jax.recipe.yaml_text import read_yaml
from jasper_jax.runtime.errors import UserError, nearest

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata  # pyright: ignore[reportMissingImports]

KIND = {PromptType.query: "query", PromptType.document: "passage"}
"""MTEB's name of a kind of text -> this package's."""


def prompt_kind(prompts: Mapping[str, str], task: TaskMetadata, prompt_type: PromptType | None) -> str | None:
    """The ``kind`` that ``Embedder.encode`` takes for texts of ``task``; None: the model's default prompt.

    MTEB's own order of names: ``{task}-{type}``, ``{task}``, ``{task type}-{type}``, ``{task type}``, ``{type}``, where
    the type is ``query`` or ``document``. Queries and documents without any are the kinds ``query`` and ``passage``,
    which know other names too (``encoders.prompts``).
    """
    name = get_prompt_name(dict(prompts), task, prompt_type)
    return KIND[prompt_type] if prompt_type is not None and name in (None, prompt_type.value) else name


def with_prompts(own: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """``own``, a model's prompts, with those that are ``given`` in their place.

    A given ``query`` or ``document``, an empty one too, replaces the model's prompt by every name that it may have.
    """
    replaced = {name for kind, names in KIND.items() if kind.value in given for name in PROMPT_NAMES[names]}
    return {**{name: prompt for name, prompt in own.items() if name not in replaced}, **given}


def read_prompts_file(path: Path) -> dict[str, str]:
    """Prompts by name from a YAML or JSON file.

    Raises:
      UserError: no such file, not a mapping of names and texts, or a name that is neither of a task, a type of task,
        ``query`` or ``document``, nor one of the first two followed by ``-query`` or ``-document``.
    """
    prompts = read_yaml(path, str(path), "prompts by name")
    if not isinstance(prompts, dict) or not all(isinstance(x, str) for item in prompts.items() for x in item):
        raise UserError(f"{path}: expected names and texts, e.g. STS: 'Retrieve semantically similar text. '")
    types = [kind.value for kind in PromptType]
    known = {*types, *get_args(TaskType), *task_names()}
    for name in prompts:
        base = next((name.removesuffix(f"-{kind}") for kind in types if name.endswith(f"-{kind}")), name)
        if base not in known and name not in known:
            raise UserError(
                f"{path}: prompt {name!r} is of no task, type of task, query or document{nearest(base, sorted(known))}"
            )
    return prompts
