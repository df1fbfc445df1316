"""The optimizer's state, in the dtypes that the recipe says."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.run import Run
from jasper_jax.student.start import make_student
from jasper_jax.training.mesh import abstract_state
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.step import make_program
from jasper_jax.training.teaching import Teaching
from tests.tiny import recipe, recipe_tree


@pytest.mark.parametrize(("chosen", "expected"), [({}, "float32"), ({"optimizer_dtype": "bfloat16"}, "bfloat16")])
def test_the_first_moment_has_the_chosen_dtype_and_the_second_float32(tmp_path: Path, chosen, expected: str) -> None:
    run = Run(recipe(tmp_path, training={**recipe_tree(tmp_path)["training"], **chosen}), progress=False)
    student = make_student(run.recipe, run.teacher_dim, run.student)
    kind = make_kind(run.recipe, run.stages[-1], student)
    partition = make_partition(kind.stage.train, kind.active(student.shapes()), "train")
    program = make_program(kind, partition, Teaching({"a": 16, "b": 8}))
    trained, _ = jax.eval_shape(partition.split, kind.active(student.shapes()))
    state = abstract_state(program.optimizer, trained, make_mesh((1, 1, 1), jax.devices()[:1]))
    dtypes: dict[str, set] = {"mu": set(), "nu": set()}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        for moment, found in dtypes.items():
            if f".{moment}[" in jax.tree_util.keystr(path):
                found.add(leaf.dtype)
    assert dtypes == {"mu": {jnp.dtype(expected)}, "nu": {jnp.dtype("float32")}}
