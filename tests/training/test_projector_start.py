"""The projector's closed-form start does, through the text encoder, what the regression onto captions' vectors does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.run import Run
from jasper_jax.student.start import load_student
from jasper_jax.training.projector_start import through
from tests.training.test_images import falls, losses, moved_parts, parameters, run_training, vision_run

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("starts")


@pytest.mark.parametrize("projector", ["linear", "joint"])
def test_small_changes_of_an_image_move_its_vector_as_the_regression_says(place, projector) -> None:
    run = vision_run(place, name=f"through-{projector}", projector=projector)
    student, params, _ = load_student(run.recipe, run.teacher_dim, run.student)
    vision_model, rng = student.vision_model, np.random.default_rng(0)
    assert vision_model is not None
    X, D = vision_model.projected[0], student.width
    x, y, kernel = rng.normal(size=X), rng.normal(size=D), rng.normal(size=(X, D)) / X**0.5
    y = (
        np.asarray(
            student.pooled_tokens(params["encoder"], jnp.full((1, vision_model.tokens, vision_model.width), 0.01))[0]
        )
        + y / 20
    )
    solved = through(student, params, x, y, kernel, np.full(vision_model.width, 0.01, np.float32))
    assert solved["kernel"].shape == vision_model.projected

    def pooled(features: np.ndarray) -> np.ndarray:
        tokens = (features @ solved["kernel"] + solved["bias"]).reshape(len(features), -1, vision_model.width)
        tokens = jnp.broadcast_to(tokens, (len(features), vision_model.tokens, vision_model.width))
        return np.asarray(student.pooled_tokens(params["encoder"], tokens), np.float64)

    middle = pooled(x[None])[0]
    assert middle @ y / np.linalg.norm(middle) / np.linalg.norm(y) > 0.95
    change = rng.normal(size=(20, X)) * 1e-3
    found, wanted = pooled(x + change) - middle, change @ kernel
    cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.4  # damped: directions that the encoder hardly answers to are left
    assert cosine.mean() > 0.7


def test_a_joint_projector_learns_with_the_vision_encoder(place) -> None:
    run = vision_run(place, name="joint", projector="joint")
    assert run_training(run)
    assert falls(run)
    assert moved_parts(run) == {"vision", "projector"}
    assert parameters(run, 1)["projector/kernel"].shape == (4 * 12, 4 * 16)


def frozen_projector(place, name: str, steps: int, **vision) -> Run:
    stage = {"train": ["vision/layers[-1:]/**"], "steps": steps}
    run = vision_run(place, stage, name=name, projector="joint", **vision)
    assert run_training(run)
    return run


@pytest.fixture(scope="module")
def one_step(place) -> Run:
    return frozen_projector(place, "one", 1)


def test_a_frozen_projector_keeps_its_start(place, one_step) -> None:
    one, six = parameters(one_step, 1), parameters(frozen_projector(place, "six", 6), 1)
    moved = {name for name in one if not np.array_equal(one[name], six[name])}
    assert moved
    assert all(name.startswith("vision/layers/") for name in moved)


def test_the_penalty_changes_the_start(place, one_step) -> None:
    starts = [losses(run)[0] for run in (one_step, frozen_projector(place, "penalty", 1, projector_penalty=10.0))]
    assert starts[0] != starts[1]
    assert jax.tree.all(jax.tree.map(np.isfinite, starts))
