"""Runs on the same texts share their stores: other seeds, the same rows, nothing embedded twice."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.recipe.load import parse_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe_tree
from tests.training.runs import parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


def test_another_seed_on_the_stores_of_another_run(tmp_path) -> None:
    stages = [{"stage": 3, "steps": 4, "batch_size": 16, "learning_rate": 1e-2}]
    tree = recipe_tree(tmp_path, run_dir=str(tmp_path / "first"), stages=stages)
    tree["texts"]["seed"] = 0
    first = Run(parse_recipe(tree, where="tiny"))
    assert run_training(first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "first" / "vectors").rglob("*")}

    again = Run(
        parse_recipe({**tree, "run_dir": str(tmp_path / "again"), "stores": str(tmp_path / "first")}, where="tiny")
    )
    assert run_training(again)
    assert not (tmp_path / "again" / "vectors").exists()
    assert not (tmp_path / "again" / "texts").exists()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "first" / "vectors").rglob("*")}
    one, other = parameters(first, 0), parameters(again, 0)
    assert all(np.array_equal(one[name], other[name]) for name in one)

    shared = {**tree, "run_dir": str(tmp_path / "seed"), "stores": str(tmp_path / "first"), "seed": 1}
    seeded = Run(parse_recipe(shared, where="tiny"))
    assert run_training(seeded)
    assert any(not np.array_equal(leaf, parameters(seeded, 0)[name]) for name, leaf in one.items())


def test_a_store_of_other_texts_is_refused(tmp_path) -> None:
    tree = recipe_tree(tmp_path, run_dir=str(tmp_path / "first"))
    Run(parse_recipe(tree, where="tiny")).data.texts()
    other = {**tree, "run_dir": str(tmp_path / "other"), "stores": str(tmp_path / "first"), "seed": 1}
    with pytest.raises(UserError, match="first/texts: was built with another recipe: seed"):
        Run(parse_recipe(other, where="tiny")).data.texts()
