"""scripts/quickstart.sh reads its arguments before it installs anything, and from where the user stands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jasper_jax.recipe.load import load_recipe

REPOSITORY = Path(__file__).parent.parent
SCRIPT = REPOSITORY / "scripts" / "quickstart.sh"


@pytest.fixture
def quickstart(tmp_path: Path):
    """Run the script in ``tmp_path/here`` with an environment whose ``jasper`` prints its folder and arguments."""
    here, programs = tmp_path / "here", tmp_path / "venv" / "bin"
    here.mkdir()
    programs.mkdir(parents=True)
    for name, body in (("python", "exit 0"), ("jasper", 'pwd; printf "%s\\n" "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (programs / name).chmod(0o755)
    text = (REPOSITORY / "pyproject.toml").read_bytes()
    wanted = subprocess.run(["cksum"], input=text, capture_output=True, check=True)
    (programs.parent / ".jasper-quickstart").write_bytes(wanted.stdout)

    def run(*arguments: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            cwd=here,
            env={"PATH": "/usr/bin:/bin", "VENV": str(programs.parent)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize(("name", "key"), [("my notes.jsonl", "jsonl"), ("a.txt.gz", "text"), ("b.parquet", "parquet")])
def test_a_file_of_ones_own(quickstart, tmp_path: Path, name: str, key: str) -> None:
    here = tmp_path / "here"
    (here / name).write_text("{}", "utf-8")
    code, lines, err = quickstart(name, "seed=1")
    assert code == 0, err
    assert lines == [
        str(here),
        "run",
        str(REPOSITORY / "configs/quickstart.yaml"),
        f"texts.sources=[{{{key}: '{here / name}'}}]",
        "texts.count=null",
        "seed=1",
        f"run_dir='{here}/runs/{name.partition('.')[0]}'",
    ]
    assert quickstart(name, "run_dir=x")[1][-1] == "run_dir=x"


@pytest.mark.parametrize(("argument", "said"), [("none.jsonl", "no such file in"), ("my.docx", "expected .jsonl")])
def test_what_is_refused_before_anything_is_installed(quickstart, tmp_path: Path, argument: str, said: str) -> None:
    (tmp_path / "here" / "my.docx").touch()
    (tmp_path / "venv" / ".jasper-quickstart").unlink()
    code, _, err = quickstart(argument)
    assert code == 2
    assert said in err
    assert "Installing" not in err


@pytest.mark.parametrize(
    "name",
    [
        'a"},{text: "b.txt',
        "it's.txt",
        "a'}, {text: secret.txt, weight: 1, x: 'b.txt",
        "\\x2fetc\\x2fpasswd.txt",
        "# a: [b.txt",
        "seed=1.txt",
        "-x.txt",
        "*.txt",
        "$(touch broken).txt",
    ],
)
def test_what_a_file_is_called_is_no_syntax(quickstart, tmp_path: Path, name: str) -> None:
    here = tmp_path / "here"
    (here / name).write_text("a", "utf-8")
    code, lines, err = quickstart(name)
    assert code == 0, err
    recipe = load_recipe(REPOSITORY / "configs/quickstart.yaml", lines[3:])
    assert recipe.texts is not None
    assert [source.model_dump(exclude_unset=True) for source in recipe.texts.sources] == [{"text": str(here / name)}]
    assert recipe.run_dir == str(here / "runs" / name.removesuffix(".txt"))
    assert list(here.iterdir()) == [here / name]


@pytest.mark.parametrize("name", ["a\nmirror: x.txt", "${mirror}.txt"])
def test_what_cannot_stand_in_a_recipe_is_refused(quickstart, tmp_path: Path, name: str) -> None:
    (tmp_path / "here" / name).touch()
    code, _, err = quickstart(name)
    assert code == 2
    assert "rename it" in err
