"""Which models ``jasper mteb`` scores: folders, names, a finished run's export and the teachers of its recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jasper_jax.assets.models import resolve_model
from jasper_jax.benchmarks.prompts import KIND
from jasper_jax.checkpoints.export_marker import refuse_damaged
from jasper_jax.evaluation.benchmark_scores import FOLDER
from jasper_jax.recipe.load import load_recipe, run_dir
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import folder_inside
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.shell import shell_word


@dataclass(frozen=True)
class Candidate:
    source: str
    """A folder, an asset's name or a hub id."""
    revision: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    """In place of the model's own."""
    backend: str | None = None
    """None: the one that the command asks for."""
    is_teacher: bool = False

    def folder(self) -> Path:
        """The model's folder, fetched if necessary. UserError: there is none, or an export that was changed."""
        folder = resolve_model(self.source, self.revision)
        refuse_damaged(folder)
        return folder


def candidates(models: Sequence[str], teachers: bool) -> list[Candidate]:
    """What ``models`` stand for; a recipe, for its run's export and with ``teachers`` for their models too.

    Raises:
      UserError: a run without export, or ``teachers`` without a recipe that has some.
    """
    found = [candidate for model in models for candidate in _of(model, teachers)]
    if teachers and not any(candidate.is_teacher for candidate in found):
        raise UserError("--teachers: no teacher has a model here; give a recipe, or the models' names themselves")
    return list({(c.source, c.revision): c for c in reversed(found)}.values())[::-1]


def _of(model: str, teachers: bool) -> Iterator[Candidate]:
    if not is_recipe(model):
        yield Candidate(model)
        return
    recipe = load_recipe(model)
    folder = run_dir(recipe) / "export"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run jasper export {shell_word(model)} first")
    yield Candidate(str(folder))
    for teacher in recipe.teachers if teachers else ():
        if teacher.model is not None:  # imported vectors have none
            given = {kind.value: getattr(teacher.prompts, name) for kind, name in KIND.items()}
            prompts = {name: text for name, text in given.items() if text is not None}
            backend = "sentence-transformers" if teacher.backend == "torch" else None
            yield Candidate(teacher.model, teacher.revision, prompts, backend, is_teacher=True)


def is_recipe(model: str) -> bool:
    return Path(model).suffix in (".yaml", ".yml")


def results_folder(models: Sequence[str], given: Path | None) -> Path:
    """Where results go: ``given``; else ``mteb`` in the run's folder for a recipe, where its report finds them.

    UserError: nothing is given, and the folder is a link to one elsewhere.
    """
    if given is not None:
        return user_path(given, new=True)
    if is_recipe(models[0]):
        return folder_inside(run_dir(load_recipe(models[0])), FOLDER)
    return folder_inside(Path(), "mteb-results")
