"""Which optional packages a recipe needs, by the key that needs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from jasper_jax.recipe.extras import missing_extras, needed_packages
from jasper_jax.recipe.load import parse_recipe
from tests.tiny import recipe, recipe_tree


def test_a_plain_recipe_needs_none(tmp_path: Path) -> None:
    assert list(needed_packages(recipe(tmp_path))) == []
    assert missing_extras(recipe(tmp_path)) == []


def test_every_extra_is_named_with_its_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = recipe_tree(tmp_path, mirror="gs://bucket/run", images={"sources": [{"asset": "openmoji"}]})
    tree["texts"]["sources"] = [{"jsonl": "a.jsonl"}, {"hf": "one"}, {"hf": "two"}]
    tree["training"]["loggers"] = ["tensorboard", "wandb"]
    tree["teachers"][1] |= {"backend": "torch", "dim": 8}
    tree["student"]["vision"] = {"model": "dinov2-small"}
    tree["stages"].append({"stage": 4, "steps": 1, "batch_size": 2, "learning_rate": 1e-3})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    lines = missing_extras(parse_recipe(tree, "tiny"))
    keys = {line.partition(" the extra ")[2].partition(":")[0] for line in lines}
    assert keys == {
        "datasets (texts.sources[1].hf, texts.sources[2].hf)",
        "vision (images, images.sources[0].asset)",
        "export (teachers.b.backend)",
        "tensorboard (training.loggers)",
        "wandb (training.loggers)",
        "gcs (mirror)",
    }
    assert all(line.endswith("]'") for line in lines)


def test_images_that_no_stage_learns_from_need_none(tmp_path: Path) -> None:
    assert list(needed_packages(recipe(tmp_path, images={"sources": [{"hf": "pairs"}]}))) == []
