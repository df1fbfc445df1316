"""A recipe of a stranger: nothing of the environment gets into it, its addresses are of known kinds, and it stays small
in memory."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jasper_jax
from jasper_jax.data.image_sources import check_image_sources
from jasper_jax.recipe.config_sources import Images, ImageSource
from jasper_jax.recipe.load import dump_recipe, load_recipe, parse_recipe
from jasper_jax.recipe.yaml_text import MOST_NODES, dump_yaml, parse_yaml
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.remote import SCHEMES, Store
from tests.tiny import recipe_tree

SECRET = "hunter2-in-the-environment"


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", SECRET)

    def write(**changes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe_tree(tmp_path, **changes)), "utf-8")
        return path

    return write


RESOLVERS = [
    "${oc.env:MY_SECRET}",
    "gs://elsewhere/${oc.env:MY_SECRET}/run",
    "${oc.env:MY_SECRET,none}",
    "${oc.decode:'${oc.env:MY_SECRET}'}",
    "${oc.create:{a:1}}",
    "${env:MY_SECRET}",
    "\\${oc.env:MY_SECRET}",
    "${${name}}",
    "${ oc.env:MY_SECRET}",
    "${oc.env:MY_SECRET",
    "${}",
]


@pytest.mark.parametrize("text", RESOLVERS)
def test_nothing_but_a_key_is_read(text: str, recipe_file) -> None:
    for key in ("mirror", "student.prompts.query", "run_dir"):
        with pytest.raises(UserError, match=r"only \$\{key\} is replaced, by the value of that key") as caught:
            load_recipe(recipe_file(), [f"{key}={yaml.safe_dump(text, width=1000).splitlines()[0]}"])
        assert SECRET not in str(caught.value)
    with pytest.raises(UserError, match=r"recipe.yaml: .*only \$\{key\} is replaced"):
        load_recipe(recipe_file(mirror=text))


def test_an_override_into_a_reference_reads_nothing(recipe_file) -> None:
    with pytest.raises(UserError, match="mirror is a value without keys"):
        load_recipe(recipe_file(mirror="${oc.env:MY_SECRET}"), ["mirror.x=1"])


def test_a_key_of_the_recipe_is_read(recipe_file, tmp_path: Path) -> None:
    path = recipe_file(
        run_dir="runs/${name}-${seed}", texts={**recipe_tree(tmp_path / "other")["texts"], "seed": "${seed}"}
    )
    recipe = load_recipe(path, ["seed=7", "stages.1.steps=${stages[0].steps}", "heads.fc2=${heads.fc1}"])
    assert recipe.run_dir == f"runs/{recipe.name}-7"
    assert recipe.texts.seed == 7
    assert recipe.stages[1].steps == recipe.stages[0].steps
    assert recipe.heads["fc2"] == recipe.heads["fc1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_dir": "${stores}", "stores": "${run_dir}"}, r"\$\{.*\} refers to itself: "),
        ({"run_dir": "${student}"}, None),
        ({"run_dir": "x${student}"}, r"\$\{student\} is a dict, which a string cannot contain"),
        ({"run_dir": "${stages[9].steps}"}, r"\$\{stages\[9\].steps\}: the recipe has no such key"),
        ({f"a{i}": f"${{a{i - 1}}}" * 9 if i else "laugh" for i in range(30)}, "more than 200,000 characters"),
        ({f"a{i}": [f"${{a{i - 1}}}"] * 9 if i else [1] for i in range(30)}, "more than 200,000 characters"),
        ({f"a{i}": f"${{a{i + 1}}}" for i in range(5000)}, "nested too deeply"),
        ({"a0": [[[[[1]]]]], **{f"a{i}": [[[[[f"${{a{i - 1}}}"]]]]] for i in range(1, 40)}}, "nested too deeply"),
    ],
)
def test_references_that_make_no_value(changes: dict, message: str | None, recipe_file) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(recipe_file(**changes))


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
DEEP = f"a0: &a0 {'[' * 60}{']' * 60}\n" + "".join(f"a{i}: &a{i} {'[' * 60}*a{i - 1}{']' * 60}\n" for i in range(1, 8))
TREES = {
    LAUGHS: "more than 20,000 values, with aliases written out",
    MERGES: "more than 20,000 values, with aliases written out",
    "a: &a [*a]": "an alias refers to what contains it",
    "a: !!python/object/apply:os.system [id]": "the tag !!python/object/apply:os.system is not allowed",
    "a: !!binary AAAA": "the tag !!binary is not allowed",
    "a: " + "[" * 100_000: "not valid YAML",
    "a: " + "[" * 340 + "]" * 340: "more than 100 levels of lists and mappings, with aliases written out",
    DEEP: "more than 100 levels of lists and mappings, with aliases written out",
    "a: 1\nb: {c: 1, c: 2}": "the key c is there twice",
    "a: " + "9" * 10_000: "not valid YAML",
}


@pytest.mark.parametrize("text", TREES)
def test_a_small_file_is_a_small_tree(text: str, tmp_path: Path, recipe_file) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=rf"not valid YAML: .*({TREES[text].removeprefix('not valid YAML')})"):
        load_recipe(path)
    if "\n" not in text:
        with pytest.raises(UserError, match="is not a YAML value"):
            load_recipe(recipe_file(), [f"name={text.removeprefix('a: ')}"])


def test_no_other_yaml_is_read_than_the_packages_own() -> None:
    package = Path(jasper_jax.__file__).parent
    readers = {
        p.relative_to(package).as_posix() for p in package.rglob("*.py") if re.search(r"yaml\.\w*load", p.read_text())
    }
    assert readers == {"recipe/yaml_text.py", "assets/catalogue.py", "encoders/published.py"}, "the last two: own files"


def test_a_count_that_fills_the_memory_when_a_recipe_is_checked(recipe_file) -> None:
    """``jasper check`` took a byte for each text."""
    assert load_recipe(recipe_file(), ["texts.count=1000000000"]).texts is not None
    with pytest.raises(UserError, match="texts.count: 10000000000 is not allowed: input should be less than or equal"):
        load_recipe(recipe_file(), ["texts.count=10000000000"])


def test_a_tree_of_the_most_levels_is_written_again() -> None:
    """One of 340 levels, as a student's config may have, was read, and ended in a traceback when it was written."""
    tree = parse_yaml("a: " + "[" * 98 + "1" + "]" * 98)
    assert parse_yaml(dump_yaml(tree)) == tree


def test_anchors_and_merges_may_be_used_and_are_copies() -> None:
    tree = parse_yaml("a: &a {x: [1], y: 2}\nb: {<<: *a, y: 3}\nc: *a")
    assert tree == {"a": {"x": [1], "y": 2}, "b": {"x": [1], "y": 3}, "c": {"x": [1], "y": 2}}
    tree["a"]["x"].append(5)
    assert tree["b"]["x"] == tree["c"]["x"] == [1]
    assert len(parse_yaml("[" + "1," * (MOST_NODES - 1) + "]")) == MOST_NODES - 1


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.from_regex(r"[-+]?[0-9._eE:]{1,8}", fullmatch=True)
)
@example("\x85")
@example("1e3")
def test_what_is_written_is_read_back(text: str) -> None:
    assert parse_yaml(dump_yaml({"a": text, "b": [text, 1e-5, None]})) == {"a": text, "b": [text, 1e-5, None]}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/run", "http:// is not read; allowed are gs://, s3://, hf://, file://, memory://"),
        ("reference://x", "reference:// is not read"),
        ("simplecache::gs://bucket/run", "simplecache::gs:// is not read"),
        ("file:///tmp/x::http://127.0.0.1:9/", "cannot be chained"),
        ("s3://key:sec/ret@bucket/run", "may not have credentials"),
        ("gs://token@bucket/run", "may not have credentials"),
        ("s3://bucket/run?token=sec/ret", "may not have credentials or a query string"),
    ],
)
def test_addresses_are_of_known_kinds_and_have_no_secrets(address: str, message: str, recipe_file) -> None:
    for attempt in (
        lambda: load_recipe(recipe_file(mirror=address)),
        lambda: load_recipe(address),
        lambda: Store(address),
    ):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert "sec/ret" not in str(caught.value)
        assert "token@" not in str(caught.value)


def test_fsspec_would_open_more_than_is_allowed() -> None:
    assert {"http", "reference", "ftp", "ssh", "github"} <= set(fsspec.available_protocols())
    assert SCHEMES == ("gs", "s3", "hf", "file", "memory")


def test_a_variable_stays_a_name_wherever_the_recipe_goes(recipe_file, monkeypatch) -> None:
    """Local paths may have ``$NAME``; what is dumped, recorded and sent has the name, and an address is not changed."""
    recipe = load_recipe(recipe_file(run_dir="$MY_SECRET/run", mirror="gs://bucket/$MY_SECRET"))
    assert user_path(recipe.run_dir, new=True) == Path(SECRET) / "run"
    assert SECRET not in dump_recipe(recipe) + str(recipe.model_dump(mode="json"))
    assert parse_recipe(parse_yaml(dump_recipe(recipe)), "dump") == recipe
    assert Store(recipe.mirror).where("x") == "gs://bucket/$MY_SECRET/x"
    assert str(user_path("gs://bucket/$MY_SECRET")) == "gs:/bucket/$MY_SECRET"


@pytest.mark.parametrize(
    "change",
    [
        *("texts.sources.0.jsonl={}", "texts.pairs=[{{beir: {}}}]", "texts.pairs=[{{csv: {}}}]"),
        *("evaluation.retrieval=[{{name: x, beir: {}}}]", "evaluation.retrieval=[{{name: x, pairs: {{beir: {}}}}}]"),
        *("evaluation.classification=[{{name: x, file: {}}}]", "evaluation.instructions={}"),
        *("student.model={}", "teachers.0.model={}", "stores={}", "run_dir={}"),
    ],
)
def test_no_message_has_a_value_of_the_environment(change: str, recipe_file, call) -> None:
    """A log of CI is read by more people than may see the secrets of its machine."""
    for name in ("$MY_SECRET/x", "data/$MY_SECRET.csv"):
        code, out, err = call("check", recipe_file(), change.format(name))
        assert code == 2
        assert SECRET not in out + err
        for source in ({"folder": name, "captions": "c.jsonl"}, {"webdataset": name}):
            with pytest.raises(UserError, match="MY_SECRET") as caught:
                check_image_sources(Images(sources=[ImageSource(**source)]))
            assert SECRET not in str(caught.value)


@pytest.mark.parametrize("number", ["0x" + "F" * 6000, "0" + "7" * 6000, "0b" + "1" * 60_000, "1" + ":59" * 5000])
@pytest.mark.parametrize(
    "where", ["seed: {}", "name: {}", "mesh: {}", "training: {{save_every: {}}}", "zz: {}\nname: a${{zz}}"]
)
def test_whole_numbers_that_python_does_not_print(where: str, number: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(where.format(number), "utf-8")
    with pytest.raises(
        UserError, match=r"recipe\.yaml:\d: not valid YAML: a whole number of [\d,]+ characters; at most 100"
    ):
        load_recipe(path)


@pytest.mark.parametrize("least", ["[]", "{}", "''"])
def test_references_to_what_is_empty_are_counted(least: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    doubled = "".join(f"a{i + 1}: ['${{a{i}}}', '${{a{i}}}']\n" for i in range(40))
    path.write_text(f"a0: {least}\n{doubled}", "utf-8")
    with pytest.raises(UserError, match=r"the references \$\{key\} make more than 200,000"):
        load_recipe(path)
