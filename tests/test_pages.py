"""README.md and docs/: every code block is run or parsed, and the commands and files they name exist."""

from __future__ import annotations

import ast
import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jasper_jax.cli import app
from jasper_jax.recipe.load import load_recipe
from tests.pages import PAGES, REPOSITORY, blocks, group, run_group
from tests.tiny import sentences, write_model

pytestmark = pytest.mark.usefixtures("quick_programs")
GROUPS = {
    "examples": "tests/test_pages.py",
    "loop": "tests/test_pages.py",
    "notebook": "tests/test_run.py",
    "index": "tests/test_serving_page.py",
    "asymmetric": "tests/export/test_asymmetric.py",
}
"""The groups of Python blocks, and the file whose test runs each."""
COMMANDS: Any = typer.main.get_command(app)
UsageError: Any = typer.BadParameter.__base__
"""Of an unknown command or option; a missing or wrong value is its subclass ``BadParameter``."""
STAND_IN = REPOSITORY / "configs" / "quickstart.yaml"
"""The recipe that a page's own recipe stands for."""


def test_every_block_is_of_a_language_that_a_test_reads() -> None:
    known = {"python", "bash", "yaml", "json", "math", "js", ""}  # js: scripts/bench/serve_onnx.mjs runs that code
    assert [block.where for block in blocks() if block.language not in known] == []
    fences = sum(len(re.findall(r"^```", page.read_text("utf-8"), re.MULTILINE)) for page in PAGES)
    assert 2 * len(blocks()) == fences


def test_every_python_block_is_run_or_says_why_not() -> None:
    for block in blocks("python"):
        ast.parse(block.code, block.where)
        how, _, what = block.mark.partition(": ")
        assert what, block.where
        assert how in ("run", "parsed"), block.where
        if how == "run":
            runs = f'"{what.split()[0]}"' in (REPOSITORY / GROUPS[what.split()[0]]).read_text("utf-8")
            assert runs, f"{block.where}: {GROUPS[what.split()[0]]} does not run it"
    assert all(group(name) for name in GROUPS)


def test_examples_run_as_they_stand(tmp_path: Path, monkeypatch) -> None:
    folder = write_model(tmp_path / "runs" / "mine" / "export", hidden=256, layers=1)
    prompts = {"prompts": {"query": "what is ", "passage": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    monkeypatch.chdir(tmp_path)
    run_group("examples")


def test_a_loop_of_ones_own_learns_what_the_teacher_says(tmp_path: Path, monkeypatch, capsys) -> None:
    write_model(tmp_path / "models" / "teacher", layers=1)
    (tmp_path / "texts.txt").write_text("\n".join(sentences(200)))
    monkeypatch.chdir(tmp_path)
    names = run_group("loop")
    assert float(names["end"]) < 0.5 * float(names["start"])
    assert set(names["by_head"]["short"]) == {"similarity", "relative", "total"}
    assert float(names["total"]) > 0
    assert "held out:" in capsys.readouterr().out


def test_yaml_blocks_are_parts_of_a_recipe() -> None:
    base = yaml.safe_load(STAND_IN.read_text("utf-8"))
    assert blocks("yaml")
    for block in blocks("yaml"):
        part = yaml.safe_load(block.code)
        load_recipe(copy.deepcopy(base) | part)


def test_json_blocks_are_json() -> None:
    for block in blocks("json"):
        json.loads(block.code)


def lines() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of each line of the shell in all bash blocks, continued lines joined, comments left out."""
    for block in blocks("bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield block.where, words


def commands() -> Iterator[tuple[str, list[str], bool]]:
    """(where, arguments, complete) of every ``jasper`` command: lines of bash, and those in the text, which may be cut
    short."""
    for where, words in lines():
        for start in (i for i, word in enumerate(words) if word == "jasper"):
            yield where, words[start + 1 :], True
    for page in PAGES:
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            for text in re.findall(r"(?<!`)`jasper ([^`]+)`(?!`)", line):
                words = shlex.split(re.split("[;|&]", text)[0].replace("...", ""))
                yield f"{page.relative_to(REPOSITORY)}:{number}", words, False


def parse(words: list[str], *, complete: bool) -> None:
    """Raises ``UsageError`` if the command line has no such command or option; ``complete``: also for wrong values."""
    command, context, words = COMMANDS, None, [*words]
    while (inner := getattr(command, "commands", None)) is not None:
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
        if not words:
            return
        if words[0] not in inner:
            raise UsageError(f"no command {words[0]!r}")
        command = inner[words.pop(0)]
    try:
        command.make_context(command.name, words, parent=context)
    except typer.BadParameter:
        if complete:
            raise


def test_every_command_on_the_pages_exists_with_its_options() -> None:
    wrong: list[str] = []
    found = 0
    for where, words, complete in commands():
        found += 1
        try:
            parse(words, complete=complete)
        except UsageError as error:
            wrong.append(f"{where}: jasper {' '.join(words)}: {error.format_message()}")
    assert wrong == []
    assert found > 50


def test_a_wrong_command_or_option_is_found() -> None:
    for words in (["distill", "RECIPE"], ["run", "RECIPE", "--topology", "v5e:4x4"], ["encode", "MODEL"]):
        with pytest.raises(UsageError):
            parse(words, complete=True)
    with pytest.raises(UsageError, match="--dimm"):
        parse(["encode", "--dimm", "4"], complete=False)
    parse(["encode", "MODEL"], complete=False)


def test_changes_to_recipes_on_the_pages_are_keys_of_a_recipe() -> None:
    for where, words, complete in commands():
        if complete and words[0] in ("check", "run", "train", "evaluate") and words[1].endswith(".yaml"):
            file = REPOSITORY / words[1]
            changes = [word for word in words[2:] if re.match(r"[\w.\[\]-]+=", word)]
            try:
                load_recipe(file if file.is_file() else STAND_IN, changes)
            except Exception as error:
                raise AssertionError(f"{where}: {error}") from error


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path
    for name, one in (inner or {}).items():
        yield from leaves(one, (*path, name))


def test_the_page_of_commands_has_all_of_them() -> None:
    page = (REPOSITORY / "docs" / "commands.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `jasper ")]
    missing = [
        " ".join(path) for path in leaves(COMMANDS) if not any(f"`jasper {' '.join(path)}" in row for row in rows)
    ]
    assert missing == [], "add a row to the table in docs/commands.md"


def test_files_and_extras_on_the_pages_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    for page in PAGES:
        text = page.read_text("utf-8")
        where = page.relative_to(REPOSITORY)
        for path in re.findall(r"(?<![\w/$~.-])((?:scripts|configs|tests|jasper_jax)/[\w/-]+\.\w+)", text):
            assert (REPOSITORY / path).is_file(), f"{where}: {path}"
        for extras in re.findall(r"(?:jasper-jax|\.)\[([\w,-]+)\]'", text):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), f"{where}: {extras}"


def test_the_page_of_extras_has_all_of_them() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    rows = [line for line in (REPOSITORY / "docs" / "install.md").read_text("utf-8").splitlines() if line[:3] == "| `"]
    assert {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])} == set(
        project["optional-dependencies"]
    )
