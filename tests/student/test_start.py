"""The student before training: its static side out of recipe and folders, and its first parameters out of weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.weights import load_params
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.student import start
from jasper_jax.student.heads import HeadShape
from jasper_jax.student.source import StudentSource
from jasper_jax.student.start import check_start, head_shapes, make_student, make_tokenizer, starting_params
from tests.families import CASES
from tests.tiny import recipe, recipe_tree, write_model
from tests.tiny_vision import VISION, vision_changes

pytestmark = pytest.mark.usefixtures("quick_programs")

STAGE = {"steps": 2, "batch_size": 16, "learning_rate": 1e-2}
SIZES = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}


def student_of(made: Recipe):
    source = StudentSource(made.student)
    return make_student(made, 24, source), source


def described(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in flatten(tree).items()}


def agree(made: Recipe) -> dict[str, Any]:
    """The starting parameters, whose shapes and dtypes are those that the student says without them."""
    student, source = student_of(made)
    params = starting_params(made, student, source)
    assert described(student.shapes()) == described(params)
    assert jax.tree.structure(student.shapes()) == jax.tree.structure(params)
    return params


@pytest.mark.parametrize("family", CASES)
def test_shapes_are_those_of_the_weights(tmp_path: Path, family: str) -> None:
    model = write_model(tmp_path / "other", model_type=family)
    agree(recipe(tmp_path, student={"model": str(model)}))


@pytest.mark.parametrize("model_type", VISION)
@pytest.mark.parametrize("projector", ["none", "linear", "joint"])
def test_shapes_of_a_student_that_sees_are_those_of_the_weights(tmp_path: Path, model_type: str, projector) -> None:
    extra = vision_changes(tmp_path, model_type, projector=projector)
    student = {**recipe_tree(tmp_path)["student"], "vision": extra["vision"]}
    stages = [{"stage": 3, **STAGE}, {"stage": 4, "losses": {"sigmoid": 1.0}, **STAGE}]
    params = agree(recipe(tmp_path, student=student, images=extra["images"], stages=stages))
    assert ("projector" in params) == (projector != "none")
    assert {"vision", "losses"} <= set(params)


def test_layers_and_weights_are_the_checkpoints(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    student, source = student_of(made)
    assert student.encoder.num_layers == 2
    assert source.folder is not None
    stored = flatten(load_params(source.folder.encoder_path, encoder_from_config(source.folder.hf_config)))
    for name, leaf in flatten(starting_params(made, student, source)["encoder"]).items():
        expected = stored[name][np.array([0, 2])] if name.startswith("layers/") else stored[name]
        np.testing.assert_array_equal(leaf, expected, err_msg=name)


def test_random_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    settings = {"config": {"model_type": "bert", **SIZES}, "tokenizer": str(tmp_path / "student")}
    one, same = (agree(recipe(tmp_path, student=settings, seed=1)) for _ in range(2))
    other = agree(recipe(tmp_path, student=settings, seed=2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert not np.array_equal(one["heads"]["fc1"]["kernel"], other["heads"]["fc1"]["kernel"])


def test_the_static_student_and_its_tokenizer_need_no_weights(tmp_path: Path, monkeypatch) -> None:
    made = recipe(tmp_path)
    whole, _ = student_of(made)
    (tmp_path / "student" / "model.safetensors").unlink()
    monkeypatch.setattr(start, "load_params", lambda *_, **__: pytest.fail("weights were read"))
    student, source = student_of(made)
    assert student == whole
    assert make_tokenizer(student, source).max_length == 32
    assert make_tokenizer(student, source, 7).max_length == 7
    with pytest.raises(UserError, match="student"):
        check_start(made, student, source)


def test_what_the_recipe_says_comes_before_what_the_folder_says(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path)
    plain, _ = student_of(recipe(tmp_path))
    assert (plain.max_length, plain.pooling.modes, dict(plain.prompts)) == (32, ("mean",), {"query": "", "passage": ""})
    student = {**tree["student"], "max_length": 20, "pooling": "cls", "prompts": {"query": "what is "}}
    asked, _ = student_of(recipe(tmp_path, student=student))
    assert (asked.max_length, asked.pooling.modes) == (20, ("cls",))
    assert asked.prompts == {"query": "what is ", "passage": ""}


def joined_pooling(folder: Path, modes: list[str]) -> Path:
    config = {"word_embedding_dimension": 16, "pooling_mode": modes}
    (write_model(folder) / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def test_joined_pooling_modes_are_kept(tmp_path: Path) -> None:
    student = {"model": str(joined_pooling(tmp_path / "joined", ["cls", "mean"]))}
    made, _ = student_of(recipe(tmp_path, student=student))
    assert (made.pooling.modes, made.width) == (("cls", "mean"), 32)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"layers": [0, 7]}, "student.layers"),
        ({"max_length": 4096}, "student.max_length: 4096 exceeds the encoder's 64 positions"),
        ({"model": "nvembed"}, "nvembed can be a teacher only"),
        ({"model": "joined"}, r"joined joins pooling modes in the order mean, cls, but .* join them as cls, mean; set"),
        ({"model": "qwen3", "append_eos": True, "causal": True}, "student.append_eos: transformers rebuilds the token"),
        ({"causal": False}, "bert encoders are bidirectional"),
    ],
)
def test_a_student_that_is_refused(tmp_path: Path, student: dict[str, Any], message: str) -> None:
    given = {"model": str(tmp_path / "student"), **student}
    if (family := given["model"]) == "nvembed":
        pytest.importorskip("torch")
        from tests.encoders.hub import NvEmbed

        given["model"] = str(NvEmbed().save(tmp_path / family))
    elif family == "qwen3":
        given["model"] = str(write_model(tmp_path / family, model_type=family))
    elif family == "joined":
        given["model"] = str(joined_pooling(tmp_path / family, ["mean", "cls"]))
    with pytest.raises(UserError, match=message):
        student_of(recipe(tmp_path, student=given))


def test_a_tokenizer_of_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    settings = {"config": {"model_type": "bert", "vocab_size": 20, **SIZES}, "tokenizer": str(tmp_path / "student")}
    student, source = student_of(recipe(tmp_path, student=settings))
    with pytest.raises(UserError, match=r"tokenizer.json: has \d+ tokens, the encoder's embedding table 20 rows"):
        make_tokenizer(student, source)


# --------------------------------------------------------------------------------------------- heads


def test_heads_take_the_teachers_dimension_and_serve_the_largest_first(tmp_path: Path) -> None:
    heads = {"fc1": {"dim": "teachers", "nested": [4, 12]}, "fc2": {"dim": 8, "bias": False}}
    assert head_shapes(recipe(tmp_path, heads=heads), 24) == {
        "fc1": HeadShape(24, (24, 12, 4), True),
        "fc2": HeadShape(8, (8,), False),
    }


@pytest.mark.parametrize(
    ("head", "teacher_dim", "message"),
    [
        ({"dim": "teachers"}, None, "heads.fc1.dim: teachers, but the recipe has no teachers; give a number"),
        ({"dim": "teachers", "nested": [24]}, 24, "heads.fc1.nested: 24 is not smaller than the head's dimension 24"),
        ({"dim": 8, "cosine": True}, 24, "needs the teachers' dimension 24, the head has 8; set dim: teachers or cos"),
        ({"dim": 32, "init": "ridge"}, 24, "heads.fc1.init: ridge reaches at most the teachers' 24 dimensions, dim is"),
    ],
)
def test_heads_that_do_not_fit_the_teachers(tmp_path: Path, head: dict[str, Any], teacher_dim, message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_shapes(recipe(tmp_path, heads={"fc1": head}, stages=[{"stage": 1, **STAGE}]), teacher_dim)


def test_a_head_of_the_checkpoint(tmp_path: Path) -> None:
    """``init: model`` takes the Dense step of its dimension, and says what there is where that does not fit."""
    from torch.nn import Identity

    from tests.st_folders import DIM, linear, write_sentence_transformer

    model = tmp_path / "stella"
    write_sentence_transformer("bert", model, dense=[linear(DIM, 12, Identity())])
    heads = {"fc1": {"dim": 12, "init": "model"}, "fc2": {"dim": 5}}
    made = recipe(tmp_path, student={"model": str(model)}, heads=heads)
    params = agree(made)
    student, source = student_of(made)
    assert source.folder is not None
    (dense,) = source.folder.outputs[12]
    np.testing.assert_array_equal(params["heads"]["fc1"]["kernel"], dense.kernel)
    check_start(made, student, source)
    for wrong, message in [({"dim": 7}, "of 7 dimensions with bias"), ({"dim": 12, "bias": False}, "without bias")]:
        asked = recipe(tmp_path, student={"model": str(model)}, heads={**heads, "fc1": {"init": "model", **wrong}})
        for use in (check_start, starting_params):
            with pytest.raises(UserError, match=rf"heads.fc1.init: model: .*{message}.*; its dimensions are 12"):
                use(asked, *student_of(asked))
