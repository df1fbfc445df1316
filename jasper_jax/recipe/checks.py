"""Checks across sections of a recipe; its classes check each section."""

from __future__ import annotations

from collections.abc import Sequence

from jasper_jax.recipe.config import Head, Recipe
from jasper_jax.recipe.stage_data import needs, uses_teachers
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.remote import check_address, is_remote

_INSTEAD = {"run_dir": ", and set the address as mirror", "stores": ", to which the stores are copied first"}


def check_recipe(recipe: Recipe) -> None:
    """UserError for the first contradiction between sections."""
    _check_folders(recipe)
    _refuse_duplicates("teachers", [teacher.name for teacher in recipe.teachers], "teacher")
    if len(recipe.teachers) == 1 and recipe.teachers[0].weight != 1:
        raise UserError(f"teachers.0.weight: {recipe.teachers[0].weight:g} of the only teacher; remove it")
    _refuse_duplicates("evaluation.retrieval", [test.name for test in recipe.evaluation.retrieval], "test")
    judged = [test if isinstance(test, str) else test.name for test in recipe.evaluation.similarity]
    _refuse_duplicates("evaluation.similarity", judged, "test")
    _refuse_duplicates("evaluation.classification", [test.name for test in recipe.evaluation.classification], "test")
    _check_tests(recipe)
    for name, head in recipe.heads.items():
        _check_head(recipe, name, head)
    stages = resolve_stages(recipe)
    if recipe.texts is None and needs(stages, "texts"):
        first = next(stage for stage in stages if stage.learns_from("texts"))
        raise UserError(f"texts: this key is required, since {first.name} learns from texts")
    if uses_teachers(recipe) and not recipe.teachers:
        raise UserError(
            "teachers: the list is empty, but a head's target is teachers; add a teacher or set target: pooled"
        )


def _check_tests(recipe: Recipe) -> None:
    tests, texts = recipe.evaluation, recipe.texts
    if tests.instructions and not tests.retrieval and not (tests.pairs and texts and texts.pairs):
        raise UserError(
            "evaluation.instructions: needs a test in evaluation.retrieval, or texts.pairs; add one, or set it to false"
        )
    for test in tests.retrieval:
        if test.distractors is None:
            continue
        key = f"evaluation.retrieval.{test.name}.distractors"
        if texts is None:
            raise UserError(f"{key}: they come from the text store, and the recipe has no texts; remove distractors")
        if texts.count is not None and not texts.pairs and test.distractors > texts.count + texts.held_out:
            raise UserError(
                f"{key}: {test.distractors:,} passages, but the text store has at most"
                f" {texts.count + texts.held_out:,} texts (texts.count and texts.held_out); ask for fewer"
            )


def _check_folders(recipe: Recipe) -> None:
    for key in ("run_dir", "stores"):
        if "\0" in (getattr(recipe, key) or ""):
            raise UserError(f"{key}: {getattr(recipe, key)!r} has a NUL character, which a path cannot contain")
        if is_remote(getattr(recipe, key) or ""):
            raise UserError(
                f"{key}: {getattr(recipe, key)!r} is in object storage, where files cannot be locked or mapped;"
                f" give a local folder (a mount works){_INSTEAD[key]}"
            )
    if recipe.mirror is not None and not is_remote(recipe.mirror):
        raise UserError(
            f"mirror: {recipe.mirror!r} is not an address in object storage; expected e.g. gs://bucket/folder"
        )
    if recipe.mirror is not None:
        check_address(recipe.mirror, "mirror")


def _refuse_duplicates(key: str, names: Sequence[str], what: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{key}[{i}].name: another {what} is called {name!r}; rename one")


def _check_head(recipe: Recipe, name: str, head: Head) -> None:
    where = f"heads.{name}"
    if name in ("teachers", "pooled"):
        raise UserError(f"{where}: {name!r} is a reserved target; give the head another name, e.g. fc1")
    if head.target not in ("teachers", "pooled") and head.target not in recipe.heads:
        allowed = ["teachers", "pooled", *(h for h in recipe.heads if h != name)]
        raise UserError(f"{where}.target: {head.target!r} is not one of {', '.join(allowed)}")
    if head.target == name:
        raise UserError(f"{where}.target: a head cannot be its own target")
    if head.target in recipe.heads and recipe.heads[head.target].target in recipe.heads:
        raise UserError(f"{where}.target: the target of {head.target} is a head too; it must be teachers or pooled")
    if head.cosine and head.target != "teachers":
        raise UserError(f"{where}.cosine: the cosine loss needs target: teachers, the target is {head.target}")
    for dim in head.nested:
        if isinstance(head.dim, int) and dim >= head.dim:
            raise UserError(f"{where}.nested: {dim} is not smaller than the head's dim {head.dim}")
    if len(set(head.nested)) != len(head.nested):
        raise UserError(f"{where}.nested: a dimension is listed twice: {head.nested}")
