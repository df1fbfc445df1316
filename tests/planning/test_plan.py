"""One program on one machine, what is printed of it, and that planning knows nothing of recipes."""

from __future__ import annotations

import ast
import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

import jasper_jax.planning
from jasper_jax.parameters.sharding import leaf_shards, make_mesh
from jasper_jax.planning.chips import GPUS
from jasper_jax.planning.machine import Machine
from jasper_jax.planning.memory import DoesNotFit, device_bytes
from jasper_jax.planning.plan import PlannedStage, StagePlan, plan_program
from jasper_jax.planning.report import print_plan
from jasper_jax.runtime.errors import UserError

MACHINE = Machine(GPUS["l4"], 1)
N = 64


@pytest.fixture(autouse=True)
def compiled_for_this_machine(monkeypatch) -> None:
    """This machine's CPU stands in for the GPU, and does not know its options."""
    monkeypatch.setattr(Machine, "compiler_options", None)


@pytest.fixture
def mesh():
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture
def stage(mesh) -> PlannedStage:
    weight = {"heads/fc1/kernel": jax.ShapeDtypeStruct((N, N), jnp.float32)}
    state = {"trained": 4 * N * N, "frozen": 0, "optimizer": 8 * N * N, "teachers": 0}
    return PlannedStage("stage-1", N, 3600, N, 0, state, 2.0 * N**3, tuple(leaf_shards(weight, mesh)))


def lowered(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    array = jax.ShapeDtypeStruct((N, N), jnp.float32, sharding=whole)
    return jax.jit(lambda x, w: x @ w).lower(array, array)


def printed(plans: list[StagePlan]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_plan(MACHINE, plans, console)
    return console.export_text()


def test_a_program_that_fits(mesh, stage: PlannedStage) -> None:
    plan = plan_program(stage, lowered(mesh), mesh, MACHINE)
    assert plan.fits
    assert plan.analysis is not None
    assert plan.estimate is not None
    assert plan.analysis.flops == 2 * N**3
    assert plan.mesh_sizes == (1, 1, 1)
    assert plan.hours == pytest.approx(plan.estimate.step_seconds)  # 3,600 steps
    text = printed([plan])
    assert "1xl4: the recipe takes at least" in text
    assert "heads/fc1/kernel" in text


def test_empty_rows_are_named(mesh, stage: PlannedStage) -> None:
    words = "stage-1: 38 of the 64 rows that the devices compute in a step are empty"
    plan = plan_program(dataclasses.replace(stage, empty=38), lowered(mesh), mesh, MACHINE)
    assert printed([plan, dataclasses.replace(plan, settings=("student.remat=none",))]).count(words) == 1
    few = plan_program(dataclasses.replace(stage, empty=12), lowered(mesh), mesh, MACHINE)
    assert "are empty" not in printed([few])


class Refused:
    """A program that the compiler refuses."""

    def __init__(self, reason: str):
        self.reason = reason

    def compile(self, options: object = None) -> None:
        raise jax.errors.JaxRuntimeError(self.reason)


def test_a_program_that_is_too_large(mesh, stage: PlannedStage) -> None:
    plan = plan_program(stage, Refused("RESOURCE_EXHAUSTED: Used 30.0G of 24.0G hbm. More"), mesh, MACHINE)
    assert plan.too_large == DoesNotFit(30 * 2**30, 24 * 2**30)
    assert not plan.fits
    text = printed([plan])
    assert "no, 6.00 too much" in text
    assert "stage-1 do not fit" in text


def test_a_program_that_is_refused_for_another_reason(mesh, stage: PlannedStage) -> None:
    with pytest.raises(UserError, match="stage-1: the compiler refuses the step for 1xl4: INVALID_ARGUMENT: x$"):
        plan_program(stage, Refused("INVALID_ARGUMENT: x\nmore"), mesh, MACHINE)


def test_bytes_on_a_device() -> None:
    mesh = jax.sharding.AbstractMesh((4,), ("fsdp",))
    spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
    tree = {
        "spread": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=spread),
        "whole": [jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=whole)],
    }
    assert device_bytes(tree) == 2 * 3 * 4 + 5 * 2
    assert device_bytes(jnp.zeros(7, np.int8)) == 7


def test_planning_imports_only_parameters_and_runtime() -> None:
    folder = Path(jasper_jax.planning.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jasper_jax"):
                assert node.module.split(".")[1] in ("planning", "parameters", "runtime"), (path.name, node.module)
