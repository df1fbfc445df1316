"""What ``jasper plan`` says of embedding: a process's devices, its programs, and the memory of the largest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jasper_jax.encoders.registry import encoder_from_folder
from jasper_jax.planning.machine import parse_target
from jasper_jax.recipe.config import Teacher
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.training.plan_embedding import embedding_table, of_one_host, plan_embedding
from tests.tiny import write_model


@pytest.mark.parametrize(
    ("whole", "part"),
    [
        ("v5e:4x4", "v5e:2x2"),
        ("v5e:1x1", "v5e:1x1"),
        ("v5p:4x4x4", "v5p:2x2x1"),
        ("64xh100", "8xh100"),
        ("2xl4", "2xl4"),
    ],
)
def test_a_process_embeds_on_the_devices_of_its_host(whole, part):
    assert str(of_one_host(parse_target(whole))) == part


def test_the_largest_program_of_a_teacher(tmp_path):
    pytest.importorskip("jax_cuda13_plugin")
    model = write_model(tmp_path / "model")
    teacher = TeacherModel(Teacher(name="a", model=str(model), compute_dtype="bfloat16"))
    plan = plan_embedding(teacher, parse_target("1xl4"))
    assert plan is not None
    numbers = sum(map(math.prod, encoder_from_folder(model).shapes().values()))
    assert plan.program.stage.state_bytes["frozen"] == 2 * numbers
    assert plan.program.stage.batch_size == 32768
    assert {length for _, length in plan.shapes} == {64, 128}
    assert plan.program.fits
    assert plan.tokens_per_second is not None
    assert np.isfinite(plan.tokens_per_second)
    assert plan.longest == 128
    table = embedding_table([plan])
    assert [next(iter(column.cells)) for column in table.columns][:2] == ["a", "1"]


@pytest.mark.parametrize("change", [{"mode": "online"}, {"backend": "torch", "dim": 16}])
def test_other_teachers_are_not_embedded_by_jax(tmp_path, change):
    teacher = TeacherModel(Teacher(name="a", model=str(write_model(tmp_path / "model")), **change))
    assert plan_embedding(teacher, parse_target("1xl4")) is None
