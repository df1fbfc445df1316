"""``jasper plan``: what it refuses, and the step that it lowers."""

from __future__ import annotations

import importlib.util
import json

import jax
import pytest

from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.planning.plan import leaves, state_bytes
from jasper_jax.planning.programs import lower_step
from jasper_jax.run import Run
from jasper_jax.student.start import make_student
from tests.tiny import recipe, recipe_tree


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "recipe.json"
    found.write_text(json.dumps(recipe_tree(tmp_path)))
    return found


def test_what_plan_refuses(refused, path) -> None:
    refused("--topology: none is given; give a TPU slice", "plan", path)
    refused("topology: '8xh99': h99 is no GPU that is known; GPUs are h100", "plan", path, "--topology", "8xh99")
    refused("topology", "plan", path, "--topology", "v9z:4x4")
    refused("topology: 'v5e:3x3'", "plan", path, "--topology", "v5e:3x3")
    if importlib.util.find_spec("libtpu") is None:
        refused("pip install 'jasper-jax[plan]'", "plan", path, "--topology", "v5e:2x2")


def test_a_plan_for_one_gpu(call, path) -> None:
    code, out, err = call("plan", path, "--topology", "1xl4", "mesh={data: 1, fsdp: 1, tensor: 1}")
    assert code == 0, err
    assert "the recipe takes at least" in out
    assert "1xl4: an estimate" in out


@pytest.mark.parametrize("online", [False, True])
def test_the_step_that_is_planned(tmp_path, online: bool) -> None:
    """Its arguments are those of training: every leaf, twice in the optimizer where it is trained."""
    teachers = [{**t, "mode": "online" if online else "cached"} for t in recipe_tree(tmp_path)["teachers"]]
    run = Run(recipe(tmp_path, teachers=teachers))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    for stage in run.stages:
        step = lower_step(run.recipe, run.vectors, stage, student, mesh, "cpu")
        size = state_bytes(step)
        assert size["optimizer"] >= 2 * size["trained"]
        assert size["optimizer"] <= 2 * size["trained"] + 64
        assert (size["teachers"] > 0) == online
        assert sum(one for _, _, one in leaves(step, mesh)) == size["trained"] + size["frozen"]
        assert (step.rows, step.length) == (16, 32)
    assert size["frozen"] == 0
