"""Stage 4 at tiny size, through the real loop: it learns images, and nothing of the text student moves."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.metrics import read_events
from tests.tiny import recipe, recipe_tree
from tests.tiny_vision import vision_changes
from tests.training.runs import parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")

HEADS = {"fc1": {"dim": "teachers", "nested": [12]}, "fc2": {"dim": 8}}


def stages(**changes):
    shared = {"batch_size": 16, "learning_rate": 5e-3}
    return [
        {"stage": 3, "steps": 6, **shared},
        {"stage": 4, "steps": 60, "batch_size": 12, "learning_rate": 2e-2, **changes},
    ]


def vision_run(place, changes=None, model_type="dinov2", name="run", **vision) -> Run:
    extra = vision_changes(place, model_type, **vision)
    student = {**recipe_tree(place)["student"], "vision": extra["vision"]}
    return Run(
        recipe(
            place,
            student=student,
            images=extra["images"],
            stages=stages(**(changes or {})),
            heads=HEADS,
            training={"shapes": 1, "ridge_texts": 64, "evaluate_every": None},
            run_dir=str(place / name),
            stores=str(place / "stores"),
        ),
        progress=False,
    )


def losses(run: Run, event: str = "step") -> list[float]:
    events = read_events(run.folder / "metrics.jsonl")
    return [e["loss"] for e in events if e["event"] == event and e["stage_index"] == 1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def whole(place) -> Run:
    run = vision_run(place, name="whole", projector="linear")
    assert run_training(run)
    return run


def moved_parts(run: Run) -> set[str]:
    """What the stage on images changed; an attention key's bias has no gradient and may stay."""
    before, after = parameters(run, 0), parameters(run, 1)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    still = {name for name in before if name.startswith(("vision/", "projector/", "losses/"))} - moved
    trained = [name.split("/")[0] for name in moved]
    assert all("key/bias" in name for name in still if name.split("/")[0] in trained)
    return set(trained)


def falls(run: Run) -> bool:
    found = losses(run)
    assert len(found) == run.stages[1].steps
    return np.mean(found[-10:]) < 0.99 * np.mean(found[:5])


def test_the_student_learns_images_and_its_texts_stay(whole) -> None:
    assert falls(whole)
    assert moved_parts(whole) == {"vision", "projector"}
    held_out = losses(whole, "evaluation")
    assert held_out[-1] < held_out[0]


def test_without_a_projector_and_with_the_sigmoid_loss(place) -> None:
    run = vision_run(place, {"losses": {"sigmoid": 1.0}}, "siglip_vision_model", name="sigmoid")
    assert run_training(run)
    assert falls(run)
    assert moved_parts(run) == {"vision", "losses"}
    terms = next(e for e in read_events(run.folder / "metrics.jsonl") if e.get("stage_index") == 1)["terms"]
    assert {"fc1/sigmoid", "fc1@12/cosine", "fc2/relative"} <= set(terms)


def test_the_last_layers_alone(place) -> None:
    run = vision_run(place, {"last_layers": 1, "steps": 6}, "clip_vision_model", name="last")
    assert run_training(run)
    before, after = parameters(run, 0), parameters(run, 1)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("vision/layers/") for name in moved)
    assert all(np.array_equal(before[name][0], after[name][0]) for name in moved)


def test_stopped_and_continued_it_ends_the_same(place, whole) -> None:
    parts = vision_run(place, name="parts", projector="linear")
    assert not run_training(parts, stop=lambda step: step == 37)
    assert run_training(parts)
    one, other = parameters(whole, 1), parameters(parts, 1)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_closed_form_start_is_nearer_than_a_random_one(place, whole) -> None:
    run = vision_run(place, {"steps": 1}, name="random", projector="linear", projector_init="random")
    assert run_training(run)
    assert losses(whole)[0] < losses(run)[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student.vision": None}, "stage 4 trains a vision encoder; set student.vision"),
        ({"images": None}, "stage 4 learns from image-caption pairs; set images"),
        (
            {"stages.1.losses": {"sigmoid": 1.0}, "stages.1.stage": 3, "stages.1.name": "more"},
            r"stages\[1\].losses.sigmoid: this loss exists in stages on images",
        ),
        ({"stages.0.heads": ["fc1", "fc2"], "stages.1.heads": ["fc3"]}, "fc3 is frozen in stage 4"),
        ({"student.vision.tokens": 60}, "take at most"),
        ({"student.vision.image_size": 20}, "14 or 21"),
        ({"images.sources": []}, "images.sources"),
    ],
)
def test_a_mistake_is_named(place, changes, says) -> None:
    from jasper_jax.commands.validation import validate
    from jasper_jax.recipe.load import parse_recipe

    tree = vision_run(place, name="wrong").recipe.model_dump(mode="json")
    tree["heads"]["fc3"] = {"dim": 4}
    for key, value in changes.items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node[int(part) if part.isdigit() else part]
        node[int(last) if last.isdigit() else last] = value
    with pytest.raises(UserError, match=says):
        validate(Run(parse_recipe(tree, "recipe"), progress=False))
