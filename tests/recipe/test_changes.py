"""Which differences make another recipe of a run, and which two commands on one run folder may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jasper_jax.recipe.changes import MAY_CHANGE, recipe_changes
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import dump_recipe, parse_recipe
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe_tree


def tree(place: Path) -> dict[str, Any]:
    made = recipe_tree(place)
    made["student"]["vision"] = {"model": "somewhere", "tokens": 4}
    return made


def changed(made: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """``made`` with one dotted key set."""
    head, _, rest = key.partition(".")
    return {**made, head: changed(made.get(head) or {}, rest, value) if rest else value}


ALLOWED = {
    "run_dir": "elsewhere",
    "mirror": "gs://bucket/run",
    "evaluation": {"agreement": False},
    "export": {"dtype": "float16"},
    "training.save_every": 7,
    "training.keep": 7,
    "training.evaluate_every": None,
    "training.loggers": ["tensorboard"],
    "training.workers": 3,
    "training.profile_steps": 2,
    "training.micro_batch": 8,
    "ray": {"num_cpus": 2, "num_gpus": 0},
    "mesh": {"data": 1, "fsdp": 2, "tensor": 1},
    "student.remat": "dots",
    "student.vision.remat": "full",
}


def test_every_key_that_may_change_is_tried() -> None:
    assert set(ALLOWED) == set(MAY_CHANGE)


@pytest.mark.parametrize("key", ALLOWED)
def test_what_the_parameters_do_not_depend_on_may_change(tmp_path: Path, key: str) -> None:
    made = tree(tmp_path)
    other = parse_recipe(changed(made, key, ALLOWED[key]), "tiny")
    assert other != parse_recipe(made, "tiny")
    assert recipe_changes(made, other, "there") == []
    assert recipe_changes(yaml.safe_load(dump_recipe(other)), parse_recipe(made, "tiny"), "there") == []


def test_anything_else_is_named_with_both_values(tmp_path: Path) -> None:
    made = tree(tmp_path)
    for key, value, said in [
        ("seed", 1, "seed (0 there, 1 asked)"),
        ("student.dropout", 0.5, "student.dropout (0.0 there, 0.5 asked)"),
        ("student.vision.tokens", 5, "student.vision.tokens (4 there, 5 asked)"),
        ("training.row_length", 64, "training.row_length (None there, 64 asked)"),
    ]:
        other = parse_recipe(changed(made, key, value), "tiny")
        assert recipe_changes(made, other, "there") == [said]
    without: Recipe = parse_recipe(recipe_tree(tmp_path), "tiny")
    assert len(recipe_changes(made, without, "there")) == 1, "a vision encoder is no setting of memory"


def test_further_stages_are_no_other_recipe(tmp_path: Path) -> None:
    made = recipe_tree(tmp_path)
    further = {"stage": 3, "name": "more", "steps": 2, "batch_size": 16, "learning_rate": 1e-3}
    longer = {**made, "stages": [*made["stages"], further]}
    assert recipe_changes(made, parse_recipe(longer, "tiny"), "there") == []
    assert len(recipe_changes(longer, parse_recipe(made, "tiny"), "there")) == 1, "a trained stage cannot be taken back"
    other = {**longer, "stages": [{**made["stages"][0], "steps": 9}, *longer["stages"][1:]]}
    assert len(recipe_changes(made, parse_recipe(other, "tiny"), "there")) == 1
    learned = {**further, "stage": "pairs", "losses": {"contrastive": 1.0, "learn_temperature": True}}
    texts = {**made["texts"], "pairs": [{"jsonl": "pairs.jsonl"}]}
    made, new = {**made, "texts": texts}, {**made, "texts": texts, "stages": [*made["stages"], learned]}
    assert len(recipe_changes(made, parse_recipe(new, "tiny"), "there")) == 1, "its number is a parameter"


def test_a_recorded_recipe_that_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there/recipe.yaml: "):
        recipe_changes({"name": "x"}, parse_recipe(tree(tmp_path), "tiny"), "there/recipe.yaml")


def test_a_recipe_recorded_with_a_key_that_is_gone(tmp_path) -> None:
    """``quantize`` was a key of stages; null did nothing, and is what nearly all recorded recipes have."""
    tree = recipe_tree(tmp_path)
    kept = parse_recipe({**tree, "stages": [{**stage, "quantize": None} for stage in tree["stages"]]}, "here")
    assert kept == parse_recipe(tree, "here")
    assert not recipe_changes({**tree, "stages": [{**s, "quantize": None} for s in tree["stages"]]}, kept, "here")
    with pytest.raises(UserError, match=r"stages\[0\]\.quantize: unknown key"):
        parse_recipe({**tree, "stages": [{**stage, "quantize": "binary"} for stage in tree["stages"]]}, "here")
