"""``jasper plan`` and the mesh in ``jasper check``: what they refuse, and the step that they lower."""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import jax
import pytest

from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.planning import machine
from jasper_jax.planning.chips import GPUS
from jasper_jax.planning.machine import Machine
from jasper_jax.run import Run
from jasper_jax.student.start import make_student
from jasper_jax.training import plan_stages
from jasper_jax.training.lowering import lower_step
from jasper_jax.training.plan_stages import planned_stage
from tests.tiny import recipe, recipe_tree


@pytest.fixture
def path(tmp_path):
    recipe_path = tmp_path / "recipe.json"
    recipe_path.write_text(json.dumps(recipe_tree(tmp_path)))
    return recipe_path


def test_what_plan_refuses(refused, path) -> None:
    refused("--topology: expected a TPU slice", "plan", path)
    refused("topology: '8xh99': h99 is not a known GPU; GPUs are h100", "plan", path, "--topology", "8xh99")
    refused("topology", "plan", path, "--topology", "v9z:4x4")
    refused("topology: 'v5e:3x3'", "plan", path, "--topology", "v5e:3x3")
    if importlib.util.find_spec("libtpu") is None:
        refused("pip install 'jasper-jax[plan]'", "plan", path, "--topology", "v5e:2x2")
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        refused("pip install 'jasper-jax[plan-gpu]'", "plan", path, "--topology", "8xh100")


def test_check_shows_a_mesh_that_is_not_here(call, refused, path) -> None:
    code, out, _ = call("check", path, "mesh={data: 1, fsdp: 4, tensor: 2}")
    assert code == 0
    assert "Where parameters lie" in out
    refused("stages[0].batch_size: 16 texts do not divide over data × fsdp = 3", "check", path, "mesh={fsdp: 3}")


def test_a_plan_for_one_gpu(call, path, monkeypatch) -> None:
    """This machine's CPU stands in for the GPU, and compiles without its options."""
    monkeypatch.setattr(machine, "gpu_devices", lambda card, count, nodes: jax.devices("cpu")[:count])
    monkeypatch.setattr(Machine, "compiler_options", None)
    stage = "stages=[{stage: 3, steps: 4, batch_size: 16, learning_rate: 0.01}]"
    code, out, err = call("plan", path, "--topology", "1xl4", "mesh={data: 1, fsdp: 1, tensor: 1}", stage)
    assert code == 0, err
    assert "the recipe takes at least" in out
    assert "1xl4: of a card's 22.49 GiB JAX takes 75%" in out
    assert "Embedding, a process of 1xl4" in out


@pytest.mark.parametrize("online", [False, True])
def test_the_step_that_is_planned(tmp_path, online: bool) -> None:
    """Its arguments are those of training: every leaf, twice in the optimizer where it is trained."""
    teachers = [{**t, "mode": "online" if online else "cached"} for t in recipe_tree(tmp_path)["teachers"]]
    run = Run(recipe(tmp_path, teachers=teachers))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    for stage in run.stages:
        step = lower_step(run.recipe, run.vectors, stage, student, mesh, "cpu")
        planned = planned_stage(stage, student, step, mesh)
        size = planned.state_bytes
        assert size["optimizer"] >= 2 * size["trained"]
        assert size["optimizer"] <= 2 * size["trained"] + 64
        assert (size["teachers"] > 0) == online
        assert sum(part_bytes for _, _, part_bytes in planned.leaves) == size["trained"] + size["frozen"]
        assert (planned.name, planned.batch_size, planned.steps) == (stage.name, 16, 4)
        assert (step.rows, step.length) == (16, 32)
    assert size["frozen"] == 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of a plan."""

    fits: bool
    settings: tuple[str, ...] = ()


def test_a_stage_that_fits_is_also_planned_with_the_lightest_recomputation_that_fits(tmp_path, monkeypatch) -> None:
    """Not one of heads alone, which recomputes nothing."""
    stages = [{"stage": n, "steps": 4, "batch_size": 16, "learning_rate": 1e-2} for n in (1, 3)]
    run = Run(recipe(tmp_path, stages=stages))
    student = dataclasses.replace(make_student(run.recipe, run.teacher_dim, run.student), remat="full")
    monkeypatch.setattr(
        plan_stages, "plan_stage", lambda recipe, vectors, stage, student, mesh, target: Plan(student.remat != "none")
    )
    monkeypatch.setattr(machine, "gpu_devices", lambda card, count, nodes: jax.devices("cpu")[:count])
    plans = list(plan_stages.plan_stages(run.recipe, run.vectors, student, Machine(GPUS["l4"], 1)))
    found = [(plan.fits, *plan.settings) for plan in plans]
    assert found == [(True,), (True,), (False, "student.remat=none"), (True, "student.remat=dots")]


def test_several_nodes_take_the_mesh_of_a_run(tmp_path, monkeypatch) -> None:
    run = Run(recipe(tmp_path))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    asked = []

    def mesh(target, sizes):
        asked.append(sizes)
        return make_mesh((1, 1, 1), jax.devices()[:1])

    monkeypatch.setattr(Machine, "mesh", mesh)
    monkeypatch.setattr(plan_stages, "plan_stage", lambda *_: Plan(fits=True))
    list(plan_stages.plan_stages(run.recipe, run.vectors, student, machine.parse_target("2x4xh100")))
    assert asked == [(2, 4, 1)]


def test_a_stage_that_does_not_fit_is_tried_with_less_memory(tmp_path, monkeypatch) -> None:
    """Layers recomputed, then the batch in ever smaller pieces, until one fits."""
    run = Run(recipe(tmp_path, stages=[{"stage": 3, "steps": 4, "batch_size": 16, "learning_rate": 1e-2}]))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    tried = []

    def plan_stage(recipe, vectors, stage, student, mesh, target):
        tried.append((student.remat, recipe.training.micro_batch))
        return Plan(recipe.training.micro_batch == 4)

    monkeypatch.setattr(plan_stages, "plan_stage", plan_stage)
    monkeypatch.setattr(machine, "gpu_devices", lambda card, count, nodes: jax.devices("cpu")[:count])
    plans = list(plan_stages.plan_stages(run.recipe, run.vectors, student, Machine(GPUS["l4"], 1)))
    assert tried == [("none", None), ("dots", None), ("full", None), ("full", 8), ("full", 4)]
    assert plans[-1].settings == ("student.remat=full", "training.micro_batch=4")
