"""A path means what a shell would make of it, and a file that exists is never a pattern."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.recipe.load import run_dir, stores_dir
from jasper_jax.recipe.yaml_text import dump_yaml
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import folder_to_make, matching_files, user_path
from tests import tiny


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("~/x", "home/x"), ("$DATA/x", "data/x"), ("${DATA}/x", "data/x"), ("~", "home")],
)
def test_home_and_variables(home, text, expected):
    assert user_path(text, new=True) == home / expected
    (home / expected).mkdir(parents=True)
    assert user_path(text) == home / expected


def test_what_exists_is_itself(home):
    for name in ("$UNSET", "~", "a$DATA"):
        (home / name).mkdir()
        assert user_path(name) == Path(name)
    assert user_path("plain/x") == Path("plain/x")


@pytest.mark.parametrize("text", ["runs/$SECRET", "$SECRET/x", "$DATA/${SECRET}x/y", "runs/a-$SECRET/../x"])
def test_no_folder_is_made_with_a_name_from_the_environment(home, monkeypatch, text):
    monkeypatch.setenv("SECRET", "hunter2")
    (home / "data").mkdir()
    with pytest.raises(UserError, match="run_dir: .*SECRET.* make it first") as raised:
        folder_to_make(text, "run_dir")
    assert "hunter2" not in str(raised.value)
    assert folder_to_make("$DATA/new/x", "run_dir") == home / "data/new/x"
    assert folder_to_make("~/new", "run_dir") == home / "home/new"
    for name in ("runs/hunter2", "hunter2", "data/hunter2x", "runs/a-hunter2"):
        (home / name).mkdir(parents=True)
    folder_to_make(text, "run_dir")  # somebody made it, so it is no secret


def test_a_name_from_the_environment_that_leads_nowhere_is_not_shown(home, monkeypatch):
    """Whoever looked for it would name it in a message, and a recipe of a stranger chooses the variable."""
    monkeypatch.setenv("SECRET", "hunter2")
    (home / "data").mkdir()
    for text in ("$SECRET", "$DATA/$SECRET", "$SECRET/x", "$DATA/a-${SECRET}.csv", "*/$SECRET", "~/$SECRET/*.txt"):
        with pytest.raises(UserError, match="texts: .*SECRET.*: there is no such file or folder") as raised:
            user_path(text, "texts")
        assert "hunter2" not in str(raised.value)
    assert user_path("$DATA/no-such-file") == home / "data/no-such-file"
    (home / "data" / "a-hunter2-1.csv").write_text("", "utf-8")
    assert [path.name for path in matching_files("$DATA/a-$SECRET-*.csv")] == ["a-hunter2-1.csv"]


def test_what_cannot_be_replaced_is_named(home):
    with pytest.raises(UserError, match=r"run_dir: '\$UNSET/x': the environment variable UNSET is not set"):
        user_path("$UNSET/x", "run_dir")
    with pytest.raises(UserError, match="there is no such user"):
        user_path("~nobody-of-this-name/x", "run_dir")
    with pytest.raises(UserError, match="NUL"):
        user_path("a\0b")


@pytest.mark.parametrize(
    "pattern", ["[2024] notes/a.txt", "[2024] notes/*.txt", "$DATA/../[2024] notes/a.*", "[2024]*/a.txt"]
)
def test_a_folder_that_exists_is_no_pattern(home, pattern):
    (home / "[2024] notes").mkdir()
    (home / "data").mkdir()
    file = home / "[2024] notes" / "a.txt"
    file.write_text("x", "utf-8")
    if pattern == "[2024]*/a.txt":  # a pattern where nothing of that name exists
        assert matching_files(pattern) == []
    else:
        assert [path.resolve() for path in matching_files(pattern)] == [file]


def test_patterns_find_files_in_order(home):
    for name in ("b/2.txt", "a/1.txt", "a/deep/3.txt", "4.md"):
        (home / name).parent.mkdir(exist_ok=True, parents=True)
        (home / name).write_text("x", "utf-8")
    assert matching_files("**/*.txt") == [Path("a/1.txt"), Path("a/deep/3.txt"), Path("b/2.txt")]
    assert matching_files(str(home / "[ab]" / "*.txt")) == [home / "a/1.txt", home / "b/2.txt"]
    assert matching_files("a") == []


def test_a_pattern_of_very_many_parts_is_a_line(home, monkeypatch):
    monkeypatch.setenv("PARTS", "*/" * 2000)
    with pytest.raises(
        UserError, match=r"texts\.sources: '(\*/)+' \.\.\. has 2,001 parts after its first \*; name fewer"
    ):
        matching_files("*/" * 2000 + "*.txt", "texts.sources")
    with pytest.raises(UserError, match="there is no such file or folder"):
        user_path("$PARTS*.txt")


@pytest.mark.parametrize("link", ["data/b.txt", "data/sub"])
def test_what_a_pattern_finds_is_in_the_folder_that_is_searched(home, link):
    """Among a million files of an archive nobody sees the one that is a link to a key."""
    (home / "private").mkdir()
    (home / "private" / "key.txt").write_text("x", "utf-8")
    (home / "data").mkdir()
    (home / "data" / "a.txt").write_text("x", "utf-8")
    (home / link).symlink_to(home / "private" / ("key.txt" if link.endswith("txt") else ""))
    for pattern in ("data/**/*.txt", str(home / "data" / "**" / "*.txt"), "$DATA/**/*.txt"):
        with pytest.raises(UserError, match=r"texts\.sources: .*\*\.txt' finds .*a link to a file outside .*cp -L"):
            matching_files(pattern, "texts.sources")
    assert matching_files(f"{link}/key.txt" if link == "data/sub" else link) != [], "a file that is named is meant"
    assert matching_files("**/*.txt") != [], "nothing leads out of here"


def test_links_of_people_in_patterns(home):
    """A link to the folder that is searched, links within it, and those of the hub's cache."""
    blobs = home / "hub" / "datasets--a--b" / "blobs"
    folder = home / "hub" / "datasets--a--b" / "snapshots" / "c0ffee" / "data"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    (blobs / "1234").write_text("x", "utf-8")
    (folder / "a.txt").symlink_to("../../../blobs/1234")
    (folder / "b.txt").symlink_to("a.txt")
    (home / "data").symlink_to(folder)
    found = [folder / "a.txt", folder / "b.txt"]
    for pattern in ("data/*.txt", "hub/*/snapshots/*/data/*.txt", "hub/datasets--a--b/snapshots/*/data/*.txt"):
        assert [os.path.realpath(path) for path in matching_files(pattern)] == [str(blobs / "1234")] * 2, found


def test_a_run_in_the_home_folder(home):
    (home / "data").mkdir()
    recipe = tiny.recipe(home, run_dir="~/x", stores="$DATA/stores")
    assert run_dir(recipe) == home / "home/x"
    assert stores_dir(recipe) == home / "data/stores"


@pytest.mark.parametrize("name", [".bashrc.d", ".bashrc.d/", "ZSHRC.D", "a link to one", "x/../conf.d/."])
def test_a_folder_that_programs_run_is_not_written(home, name):
    """A recipe of a stranger may say run_dir: ~/.bashrc.d."""
    (home / ".bashrc.d").mkdir()
    (home / "a link to one").symlink_to(".bashrc.d")
    with pytest.raises(UserError, match=r"run_dir: '.*': programs run what lies in folders whose name ends with \.d"):
        folder_to_make(str(home / name), "run_dir")
    with pytest.raises(UserError, match="mirror: .*programs run what lies in"):
        Mirror(f"file://{home / name}", home)


def test_folders_below_one_that_programs_run_are_fine(home):
    for name in ("data.d/run", "d", "runs/2024.dir"):
        assert folder_to_make(str(home / name), "stores") == home / name
    Mirror("memory://runs.d", home)
    Mirror(f"file://{home}/data.d/run", home)


def test_a_shell_runs_what_a_recipe_s_prompt_says(home):
    """So that the attack above is one."""
    text = dump_yaml({"name": "x", "teachers": [{"prompts": {"query": "$(touch ran)"}}]})
    (home / "recipe.yaml").write_text(text, "utf-8")
    subprocess.run(["sh", "-c", ". ./recipe.yaml"], cwd=home, capture_output=True, check=False)
    assert (home / "ran").exists()
