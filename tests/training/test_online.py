"""Teachers in the train step, through PyTorch, and from the store: three roads to one vector."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.recipe.load import parse_recipe
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.metrics import read_events
from tests.encoders.hub import NvEmbed
from tests.tiny import recipe, recipe_tree, write_tokenizer
from tests.training.runs import fill, parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


def losses(run: Run) -> np.ndarray:
    assert run_training(run)
    return np.array([e["loss"] for e in read_events(run.folder / "metrics.jsonl") if e["event"] == "step"])


WEIGHTS = {"a": 1.0, "b": 3.0}


def with_teachers(place, name: str, **changes) -> Run:
    teachers = [
        {**teacher, "weight": WEIGHTS[teacher["name"]], **changes.get(teacher["name"], {})}
        for teacher in recipe_tree(place)["teachers"]
    ]
    return Run(recipe(place, teachers=teachers, run_dir=str(place / name)), progress=False)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    place = tmp_path_factory.mktemp("online")
    run = with_teachers(place, "cached", a={"dtype": "float32"})
    return place, run, losses(run)


@pytest.mark.parametrize("online", ["a", pytest.param("b", marks=pytest.mark.full), "ab"])
def test_online_and_cached_teachers_give_the_same_losses(cached, online) -> None:
    place, run, expected = cached
    changes = {name: {"dtype": "float32"} | ({"mode": "online"} if name in online else {}) for name in "ab"}
    other = with_teachers(place, online, **changes)
    found = losses(other)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    before, after = parameters(run, 2), parameters(other, 2)
    for name, leaf in before.items():
        scale = np.linalg.norm(leaf)
        assert np.linalg.norm(after[name] - leaf) <= 1e-3 * scale or name.endswith("key/bias"), name
    stores = {p.name for p in (other.folder / "vectors").iterdir()} if (other.folder / "vectors").is_dir() else set()
    assert stores == {"a", "b"} - set(online)


def test_weights_of_teachers_change_the_losses(cached) -> None:
    place, _, expected = cached
    same = losses(with_teachers(place, "same", a={"dtype": "float32", "weight": 0.5}, b={"weight": 1.5}))
    np.testing.assert_allclose(same, expected, rtol=1e-5)
    other = losses(with_teachers(place, "equal", a={"dtype": "float32"}, b={"weight": 1.0}))
    assert np.abs(other / expected - 1).min() > 1e-3


def test_a_float16_store_differs_a_little(cached) -> None:
    place, _, expected = cached
    found = losses(with_teachers(place, "half", a={"dtype": "float16"}, b={"dtype": "float16"}))
    difference = np.abs(found / expected - 1).max()
    assert 1e-8 < difference < 1e-2  # 0.003 when written; the start of the heads comes from the store, too


def test_an_online_teacher_that_leaves_its_prompt_out(tmp_path) -> None:
    """NV-Embed's pooling in the step, its own tokens, prompts and end token, equals its stored vectors."""
    nv = NvEmbed().save(tmp_path / "nv")
    write_tokenizer(nv)
    config = nv / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"[SEP]",', '"[SEP]", "eos_token": "[MASK]",', 1))
    teacher = {"name": "nv", "model": str(nv), "dtype": "float32", "prompts": {"query": "what is the question : "}}
    heads = {"fc1": {"dim": "teachers"}}
    found = []
    for mode in ("cached", "online"):
        tree = recipe_tree(tmp_path, teachers=[{**teacher, "mode": mode}], heads=heads, run_dir=str(tmp_path / mode))
        found.append(losses(Run(parse_recipe(tree, where="tiny"), progress=False)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_teacher_through_pytorch(tmp_path) -> None:
    torch_run = with_teachers(tmp_path, "torch", a={"backend": "torch", "dim": 16}, b={"backend": "torch", "dim": 8})
    jax_run = with_teachers(tmp_path, "jax")
    views = []
    for run in (torch_run, jax_run):
        run.run_folder.claim()
        _, view = fill(run)
        views.append(view.read("train", view.stores[0].rows("train")))
    np.testing.assert_allclose(views[0], views[1], atol=1e-3)  # one store is float16
    assert torch_run.teachers[1].spec.prompts["query"] == "what is "
    with pytest.raises(UserError, match="the teacher gave vectors of shape"):
        fill(with_teachers(tmp_path, "wrong", a={"backend": "torch", "dim": 15}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "torch"}, "backend: torch needs dim"),
        ({"backend": "torch", "dim": 16, "mode": "online"}, "mode: online needs backend: jax, got torch"),
        ({"backend": "torch", "dim": 16, "causal": True}, "causal and append_eos are for backend: jax"),
        ({"model": None, "mode": "online", "dim": 16}, "need a model"),
        ({"mode": "sometimes"}, "mode"),
        ({"weight": 0}, "weight"),
        ({"causal": False}, "bert encoders are bidirectional"),
    ],
)
def test_what_does_not_fit(tmp_path, change, message) -> None:
    tree = recipe_tree(tmp_path)
    tree["teachers"][0] |= change
    with pytest.raises(UserError, match=message):
        first_spec(tree)


def first_spec(tree):
    run = Run(parse_recipe(tree, where="tiny"), progress=False)
    return run.teachers[0].spec
