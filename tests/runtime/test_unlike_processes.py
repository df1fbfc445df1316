"""Two real processes whose run folders or stores are not the same folder: refused at the start, in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from jasper_jax.runtime import agreement
from tests.tiny import recipe_tree
from tests.training.processes import run_together

OWN_DISKS = """
import os, sys
from jasper_jax.cli import main
os.chdir(sys.argv.pop(1) + os.environ["JASPER_PROCESS"])  # relative folders are on a disk of this process
main()
"""


def started(place: Path, command: str, **changes: object) -> list[str]:
    """The last lines of two processes that both end with exit code 2; each has a working folder of its own."""
    tree = recipe_tree(place, **changes)
    (place / "recipe.yaml").write_text(yaml.safe_dump(tree))
    for index in range(2):
        (place / f"disk{index}").mkdir()
    outputs = run_together(OWN_DISKS, str(place / "disk"), command, str(place / "recipe.yaml"))
    assert [code for code, _ in outputs] == [2, 2], outputs
    return [output.strip().splitlines()[-1] for _, output in outputs]


@pytest.mark.parametrize(
    ("command", "key", "changes"),
    [
        ("run", "run_dir: runs/tiny", {"run_dir": None, "mirror": "memory://bucket/run"}),
        ("train", "run_dir: runs/tiny", {"run_dir": None, "stores": "{place}/stores"}),
        ("embed", "stores: stores", {"run_dir": "{place}/run", "stores": "stores"}),
    ],
)
def test_folders_on_disks_of_their_own(tmp_path: Path, command: str, key: str, changes: dict) -> None:
    changes = {name: value and value.format(place=tmp_path) for name, value in changes.items()}
    for line in started(tmp_path, command, **changes):
        assert line.startswith(f"jasper: {key} is not one folder for all processes: process 1 has another folder of")
        assert (
            "put it on a disk that all of them mount (NFS, Filestore, Lustre), which a mirror does not replace" in line
        )
    assert not list(tmp_path.rglob(".shared*"))
    assert not list(tmp_path.rglob("texts")), "refused before texts"


def test_what_keeps_a_process_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "SECONDS", 0.0)
    own, seen = tmp_path / "run" / "own", tmp_path / "run" / "seen"
    assert agreement.folder_problem(own, seen).startswith("has another folder of that name (on ")
    assert not own.exists()
    assert agreement.folder_problem(seen) == ""
    assert agreement.folder_problem(own, seen) == ""
    assert own.exists()
    (tmp_path / "file").touch()
    assert agreement.folder_problem(tmp_path / "file" / "own").startswith("cannot write there: ")


def test_one_process_needs_no_check(tmp_path: Path) -> None:
    agreement.refuse_unshared({"run_dir": tmp_path / "run"})
    assert os.listdir(tmp_path) == []
