"""Recipes: overrides win also inside lists, a mistake is one line that names the key, a dump reads back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jasper_jax.recipe.load import dump_recipe, load_recipe, parse_recipe
from jasper_jax.recipe.stages import KINDS, PRESETS, Preset, resolve_stages
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe_tree


@pytest.fixture
def tree(tmp_path: Path) -> dict:
    return recipe_tree(tmp_path)


@pytest.fixture
def file(tmp_path: Path, tree: dict) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_overrides_win_also_inside_lists_and_for_new_keys(file: Path) -> None:
    recipe = load_recipe(
        file,
        ["stages.2.steps=50", "stages[0].learning_rate=1e-4", "texts.augment.split_share=0.5", "stages.-1.name=last"],
    )
    assert recipe.stages[2].steps == 50
    assert recipe.stages[0].learning_rate == 1e-4
    assert recipe.texts.augment.split_share == 0.5
    assert recipe.stages[2].name == "last"


def test_an_override_can_replace_a_whole_list(file: Path) -> None:
    recipe = load_recipe(file, ["texts.sources=[{jsonl: mine.jsonl, column: body}]", "texts.count=null"])
    assert [s.jsonl for s in recipe.texts.sources] == ["mine.jsonl"]
    assert recipe.texts.sources[0].kind_column is None
    assert recipe.texts.count is None


def test_a_dumped_recipe_reads_back_equal(file: Path) -> None:
    recipe = load_recipe(file)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "dump") == recipe


@pytest.mark.parametrize("name", sorted(p.name for p in (Path(__file__).parents[2] / "configs").glob("*.yaml")))
def test_every_recipe_that_is_shipped_is_valid(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "configs" / name)
    assert resolve_stages(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.2.stepz=5", r"stages\[2\].stepz: unknown key; did you mean 'steps'\?"),
        ("trainning.keep=1", r"trainning: unknown key; did you mean 'training'\?"),
        ("stages.1.steps=many", r"stages\[1\].steps: 'many' is not allowed: input should be a valid integer"),
        ("stages.1.steps=-1", r"stages\[1\].steps: -1 is not allowed: input should be greater than or equal to 0"),
        ("texts.augment.split_share=1.5", r"texts.augment.split_share: 1.5 is not allowed"),
        ("teachers.0.dtype=float8", r"teachers\[0\].dtype: 'float8' is not allowed: input should be 'float16'"),
        ("stages.7.steps=5", r"stages.7 does not exist; allowed: 0 to 2"),
        ("stages.x.steps=5", r"stages.x does not exist"),
        ("name.x=5", r"name is a value without keys"),
        ("steps", r"expected key=value, e.g. stages.2.steps=50"),
        ("name=[1", r"is not a YAML value"),
        ("heads.fc1.nested=[99, 99]", r"heads.fc1.nested: a dimension is listed twice"),
        ("heads.fc2.nested=[8]", r"heads.fc2.nested: 8 is not smaller than the head's dim 8"),
        ("heads.fc2.target=fc9", r"heads.fc2.target: 'fc9' is not one of teachers, pooled, fc1, fc3"),
        ("heads.fc2.target=fc3", r"heads.fc2.target: the target of fc3 is a head too"),
        ("heads.fc3.cosine=true", r"heads.fc3.cosine: the cosine loss needs target: teachers"),
        ("stages.2.heads=[fc3]", r"the target of fc3 is fc1, which the stage lacks"),
        ("stages.2.heads=[fc7]", r"stages\[2\].heads: no head 'fc7'; heads are fc1, fc2, fc3"),
        ("stages.1.last_layers=null", r"stages\[1\]: stage 2 needs last_layers"),
        ("stages.1.stage=null", r"stages\[1\]: give stage: 1, 2, 3, 4 or pairs, or both train and heads"),
        ("stages.1.name=stage-1", r"another stage is called 'stage-1'"),
        ("teachers.1.name=a", r"teachers\[1\].name: another teacher is called 'a'"),
        ("teachers.1.name=../a", r"teachers\[1\].name: '../a' is not allowed"),
        ("teachers=[{name: a, model: m, weight: 2}]", r"teachers\.0\.weight: 2 of the only teacher; remove it"),
        ("teachers=[]", r"teachers: the list is empty, but a head's target is teachers"),
        ("student.layers=null", None),
        ("student.config={model_type: bert}", r"student: expected exactly one of model .* and config"),
        ("texts.sources=[{}]", r"texts.sources\[0\]: expected exactly one of text, jsonl.*, got none"),
        ("texts.sources=[{jsonl: a, text: b}]", r"asset, got text, jsonl"),
        ("texts.augment.min_sentences=11", r"min_sentences 11 is larger than max_sentences 10"),
        ("losses={cosine: 0, similarity: 0, relative: 0}", r"losses: all weights are 0"),
        ("seed=nan", r"seed"),
        ("losses.margin=.inf", r"losses.margin"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(file: Path, override: str, message: str | None) -> None:
    if message is None:
        load_recipe(file, [override])
        return
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(file, [override])
    assert "\n" not in str(caught.value)


def test_a_new_kind_of_stage_is_a_row_and_a_preset(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss terms that are not for some kinds alone are for every kind."""
    kind = dataclasses.replace(KINDS["texts"])
    monkeypatch.setitem(KINDS, "new", kind)
    monkeypatch.setitem(PRESETS, "new", Preset(train=("heads/**",), all_heads=True, kind="new"))
    stage = resolve_stages(load_recipe(file, ["stages.0.stage=new"]))[0]
    assert stage.kind is kind
    assert list(stage.losses.weights) == ["cosine", "similarity", "relative"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", r"recipe.yaml:\d+: not valid YAML"),
        ("- a\n- b\n", r"expected a mapping of keys to values, got a list"),
        ("5\n", r"expected a mapping of keys to values, got a int"),
        ("", r"name: this key is required"),
        ("name: x\nname: y\n", r"recipe.yaml:2: not valid YAML: the key name is there twice"),
        ("name: ${nowhere}\n", r"recipe.yaml: .*nowhere"),
    ],
)
def test_a_file_that_is_no_recipe(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_recipe(file)


def test_bytes_that_are_not_utf8(file: Path) -> None:
    file.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UserError, match=r"recipe.yaml, line 1: not UTF-8"):
        load_recipe(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; expected a YAML recipe"):
        load_recipe(tmp_path / "none.yaml")


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=8,
    )
)
def test_any_tree_is_a_recipe_or_one_line(tree) -> None:
    try:
        parse_recipe(tree, "fuzz")
    except UserError as error:
        assert "\n" not in str(error)
