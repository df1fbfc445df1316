"""Commands that messages advise: what stands in them is a word of the shell, whatever it is called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jasper_jax
from jasper_jax.runtime.shell import python_command, shell_word

NAMES = ["plain", "two words", "$(touch broken)", "`touch broken`", "it's; touch broken", 'a"b', "a\\b", "ä", "--x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_word(tmp_path: Path, name: str) -> None:
    command = f"printf '%s\\n' {shell_word(name)}; {python_command('import sys; sys.stdout.write({} + {})', name, 'b')}"
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONUTF8": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert done.stdout.decode() == f"{name}\n{name}b"
    assert not list(tmp_path.iterdir())


COMMAND = re.compile(
    r"\b(cp|mv|rm|chmod|chown|mkdir|iconv|git -C|hf \w+|pip install|python -c) [^;,()`]*\Z"
    r"|(?<!`)\bjasper [a-z]+ ([A-Z]+ |\S+=\S+ )*\Z|\b(run_dir|stores|mirror)=\Z"
)
"""The beginning of a command, or of an argument of one, at the end of a text."""
SAFE = {"extra", "CLIENTS[protocol][0]", "PACKAGES[name]", "name", "encoding", "self.name", "seed", "key"}
"""Names of this package, or of a form that has no such characters."""


def unquoted(tree: ast.AST) -> Iterator[str]:
    """What f-strings put into a command without ``shell_word``."""
    for node in ast.walk(tree):
        before = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                before += str(part.value)
                continue
            assert isinstance(part, ast.FormattedValue)
            called = part.value.func if isinstance(part.value, ast.Call) else None
            quoted = isinstance(called, ast.Name) and called.id in ("shell_word", "python_command")
            if COMMAND.search(before) and not quoted and (name := ast.unparse(part.value)) not in SAFE:
                yield f"{before[-40:]}{{{name}}}"
            before += "x"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("f'run chmod go-w {folder}'", True),
        ("f'run chmod go-w {shell_word(folder)}'", False),
        ("f'cp -r a/. b && cp -r {folder}/. b'", True),
        ("f'and stores={stores} to use'", True),
        ("f'run jasper export {model} first'", True),
        ("f'{folder}: put the file there (cp -L)'", False),
        ("f'`jasper export` wrote {folder}'", False),
    ],
)
def test_the_search_finds_commands(code: str, found: bool) -> None:
    assert bool(list(unquoted(ast.parse(code)))) == found


def test_no_name_stands_in_a_command_as_it_is() -> None:
    package = Path(jasper_jax.__file__).parent
    found = {
        path.relative_to(package).as_posix(): names
        for path in package.rglob("*.py")
        if path.name != "shell.py" and (names := list(unquoted(ast.parse(path.read_text("utf-8")))))
    }
    assert not found
