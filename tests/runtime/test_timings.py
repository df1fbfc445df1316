"""The record of where time went: summed over commands, one writer, and nothing that depends on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.timings import Timings
from tests.training.processes import run_together


def recorded(folder: Path) -> dict[str, float]:
    return json.loads((folder / "timings.json").read_text())


def test_phases_add_up_over_commands(tmp_path: Path) -> None:
    Timings(tmp_path).add("texts", 2.0)
    timings = Timings(tmp_path)
    timings.add("texts", 3.0)
    timings.add("training", 5.0)
    assert recorded(tmp_path) == timings.seconds == {"texts": 5.0, "training": 5.0}
    console = Console(record=True, width=80)
    console.print(timings.table())
    assert "50%" in console.export_text()


@pytest.mark.parametrize("content", ["[]", "{", '{"texts": "long"}', '{"texts": null}'])
def test_a_damaged_record_is_started_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "timings.json").write_text(content)
    Timings(tmp_path).add("texts", 1.0)
    assert recorded(tmp_path) == {"texts": 1.0}


def test_a_block_counts_also_when_it_fails_but_not_when_it_is_refused(tmp_path: Path) -> None:
    timings = Timings(tmp_path)
    with pytest.raises(ZeroDivisionError), timings.phase("failed"):
        _ = 1 / 0
    with pytest.raises(UserError), timings.phase("refused"):
        raise UserError("no such file")
    assert list(recorded(tmp_path)) == ["failed"]


def test_of_processes_that_share_a_folder_the_first_writes(tmp_path: Path) -> None:
    Timings(tmp_path, process_index=0).add("embedding", 1.0)
    other = Timings(tmp_path, process_index=1)
    other.add("embedding", 7.0)
    assert recorded(tmp_path) == {"embedding": 1.0}
    assert other.seconds == {"embedding": 8.0}


PROGRAM = """
import sys
from pathlib import Path
from jasper_jax.runtime import joining, processes
from jasper_jax.runtime.timings import Timings
joining.connect()
timings = Timings(Path(sys.argv[1]))
if processes.is_first():
    timings.add("training", 1.0)
processes.barrier("first")
if not processes.is_first():
    timings.add("training", 7.0)
processes.barrier("both")
"""


def test_of_joined_processes_the_first_writes(tmp_path: Path) -> None:
    outputs = run_together(PROGRAM, str(tmp_path))
    assert [code for code, _ in outputs] == [0, 0], outputs
    assert recorded(tmp_path) == {"training": 1.0}
