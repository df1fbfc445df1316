"""Two real processes: whatever fails in the first is passed on to the other, which would otherwise wait for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jasper_jax.runtime import joining, processes
from jasper_jax.runtime.errors import UserError
from tests.tiny import recipe_tree
from tests.training.processes import run_together

pytestmark = pytest.mark.usefixtures("quick_programs")

COMMAND = """
import errno, sys
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.cli import main
from jasper_jax.runtime.errors import UserError

def fail(self):
    raise {error}

RunFolder.claim = fail
main()
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_tree(folder)))
    return path


def embed_in_two(recipe: Path, error: str, *options: str) -> list[tuple[int, str]]:
    """Exit code and output of two processes of ``jasper embed``, in which claiming the folder raises ``error``."""
    return run_together(COMMAND.format(error=error), *options, "embed", str(recipe))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("UserError('texts: no file matches')", "jasper: texts: no file matches"),
        (
            "OSError(errno.ENOSPC, 'No space left on device', 'run/recipe.yaml')",
            "jasper: process 0 failed: OSError: [Errno 28] No space left on device: 'run/recipe.yaml'; --debug shows",
        ),
        ("TypeError('a\\ndefect \\udcff')", "jasper: process 0 failed: TypeError: a defect"),
    ],
)
def test_what_fails_in_the_first_is_one_line_in_all(recipe: Path, error: str, line: str) -> None:
    for code, output in embed_in_two(recipe, error):
        assert code == 2, output
        lines = [text for text in output.splitlines() if not text.startswith("[Gloo]")]
        assert len(lines) == 1, output
        assert lines[0].startswith(line)


def test_the_first_keeps_its_traceback(recipe: Path) -> None:
    (_, first), (_, other) = embed_in_two(recipe, "TypeError('a defect')", "--debug")
    assert "in fail" in first
    assert "in fail" not in other


ALONE = """
from jasper_jax.cli import main
from jasper_jax.commands import stores
from jasper_jax.runtime import processes

def embed(*arguments, **named):
    if processes.index():
        raise {error}
    processes.barrier("texts")

processes.PATIENCE_AFTER_ERROR, stores.fill_stores = 2.0, embed
main()
"""


@pytest.mark.parametrize(("error", "code"), [("OSError(5, 'Input/output error')", 2), ("TypeError('a defect')", 1)])
def test_an_error_in_one_alone_ends_both(recipe: Path, error: str, code: int) -> None:
    (first, _), (other, output) = run_together(ALONE.format(error=error), "embed", str(recipe))
    assert other == code, output
    assert first not in (0, 75)


def test_one_process_raises_what_it_raised() -> None:
    def fail() -> None:
        raise OSError("a full disk")

    with pytest.raises(OSError, match="a full disk"):
        processes.first_does(fail)


ROWS = """
import numpy as np
from jasper_jax.runtime import joining, processes, shared_rows
from jasper_jax.runtime.errors import UserError

joining.connect()
own = []

def make(rows):
    own.extend(rows)
    return np.array([[row, 0.5] for row in rows], np.float32).reshape(len(rows), 2)

shared_rows.GATHERED = 32  # two rows of each process at once
for count in (0, 1, 2, 11):
    rows = shared_rows.make_rows(make, count)
    assert rows.tolist() == [[row, 0.5] for row in range(count)], rows
print("made", own)

def fail(rows):
    if processes.index():
        raise UserError("no memory")
    return make(rows)

try:
    shared_rows.make_rows(fail, 4)
except UserError as error:
    print("refused:", error)
print("says", processes.first_says(lambda: True), processes.first_says(lambda: False))
"""


def test_rows_are_made_by_all_and_known_to_all() -> None:
    made = ["[0, 0, 0, 2, 4, 6, 8, 10]", "[0, 1, 1, 3, 5, 7, 9]"]
    for (code, output), own in zip(run_together(ROWS), made):
        assert code == 0, output
        assert f"made {own}\nrefused: no memory\nsays True False" in output


LAST = """
import fcntl, os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jasper_jax.runtime import joining, processes
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.interrupt import stop_flag

joining.connect()
alive = open(sys.argv[1], "w")
if processes.index():
    fcntl.flock(alive, fcntl.LOCK_EX)  # until this process has ended
processes.barrier("locked")
if not processes.go_on_alone():
    processes.leave(0)
fcntl.flock(alive, fcntl.LOCK_EX)
print("alone", processes.count(), processes.index(), float(jnp.arange(4.0).sum()), processes.gather(np.ones(2)).shape)
with stop_flag() as stop:
    try:
        with stop.immediately():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    except Interrupted:
        processes.leave(75)
"""


def test_the_first_goes_on_when_the_others_have_ended(tmp_path: Path) -> None:
    (first, output), (other, line) = run_together(LAST, str(tmp_path / "lock"))
    assert (first, other) == (75, 0), output + line
    assert "alone 1 0 6.0 (1, 2)" in output
    assert "Process 1 of 2 is done; process 0 finishes alone." in line


def test_joining_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**_: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: a barrier\nwith details")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError, match=r"processes: JAX could not join them: DEADLINE_EXCEEDED: a barrier$"):
        joining.connect("127.0.0.1:1", 2, 0)


ASKED = """
import os, signal, time
from jasper_jax.runtime import joining, processes
from jasper_jax.runtime.errors import Interrupted
from jasper_jax.runtime.interrupt import stop_flag

joining.connect()
with stop_flag() as stop:
    processes.barrier("ready")
    if processes.index():
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        with stop.immediately():
            processes.first_does(lambda: [time.sleep(0.05) for _ in range(6000)])
    except Interrupted:
        print("interrupted")
    print("after the first step", stop())
"""


def test_all_are_asked_to_stop_by_a_signal_to_one() -> None:
    """Process 1 gets it and process 0 works. Whoever is not interrupted stops after the first step."""
    for code, output in run_together(ASKED):
        assert code == 0, output
        assert "interrupted\nafter the first step True" in output
