"""A save goes on beside the steps: complete as soon as it is written, its failure never lost, its memory given back."""

from __future__ import annotations

import errno
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jasper_jax.checkpoints import checkpoint
from jasper_jax.checkpoints.checkpoint import Checkpoints, Position, abstract
from jasper_jax.runtime.errors import UserError, WriteFailed
from tests.training.processes import free_port

TREE = {"trained": jnp.arange(2048.0), "optimizer": {"mu": jnp.ones((64, 32)), "count": jnp.zeros((), jnp.int32)}}


def until(happened: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def full_disk(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_save_is_complete_without_another_call(tmp_path: Path) -> None:
    told: list[Position] = []
    checkpoints = Checkpoints(tmp_path, ["one"], 2, after=lambda: told.append(checkpoints.latest()))
    for step in (2, 4, 6):
        checkpoints.save_step(Position(0, step), TREE, {})
        until(lambda: len(told) == step // 2)  # noqa: B023
        assert told[-1] == Position(0, step)
    assert checkpoints.steps(0) == [4, 6], "the older one is gone, too"
    checkpoints.wait()
    found = checkpoints.load(checkpoints.step(0, 6), abstract(TREE))
    jax.tree.map(np.testing.assert_array_equal, found, TREE)


def test_until_it_is_sealed_the_one_before_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the thread is at, the loop may ask; a kill leaves what it would be told."""
    checkpoints = Checkpoints(tmp_path, ["one"], 1)
    checkpoints.save_step(Position(0, 2), TREE, {})
    checkpoints.wait()
    at_seal, go, seal = threading.Event(), threading.Event(), checkpoint.seal

    def held(path: Path) -> None:
        at_seal.set()
        assert go.wait(60)
        seal(path)

    monkeypatch.setattr(checkpoint, "seal", held)
    checkpoints.save_step(Position(0, 4), TREE, {})
    assert at_seal.wait(60)
    checkpoints.settle()
    assert checkpoints.latest() == Position(0, 2)
    assert not checkpoints.has(checkpoints.step(0, 4))
    assert Checkpoints(tmp_path, ["one"], 1).latest() == Position(0, 2)
    go.set()
    checkpoints.wait()
    assert checkpoints.latest() == Position(0, 4)
    assert checkpoints.steps(0) == [4]


def test_what_is_written_is_what_was_there_at_the_call(tmp_path: Path) -> None:
    """The step that follows donates the arrays and writes over their memory."""
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    tree = jax.tree.map(jnp.copy, TREE)
    checkpoints = Checkpoints(tmp_path, ["one"], 1)
    checkpoints.save_step(Position(0, 1), tree, {})
    for _ in range(5):
        tree = step(tree)
    jax.block_until_ready(tree)
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.load(checkpoints.step(0, 1), abstract(TREE)), TREE)


def test_after_the_commit_nothing_of_it_is_in_memory(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ["one"], 1)
    tree = jax.tree.map(jnp.copy, TREE)
    before = {id(array) for array in jax.live_arrays()}
    for step in (1, 2):
        checkpoints.save_step(Position(0, step), tree, {})
        until(lambda: checkpoints.latest().step == step)  # noqa: B023
        until(lambda: {id(array) for array in jax.live_arrays()} == before, seconds=5)


def test_a_failed_save_is_told_once_at_the_next_call_whichever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, ["one"], 1)
    monkeypatch.setattr(checkpoint, "seal", full_disk)

    def settle() -> None:
        until(lambda: bool(checkpoints.settle()))

    for number, told in enumerate((settle, checkpoints.wait, lambda: checkpoints.save_step(Position(0, 9), TREE, {}))):
        checkpoints.save_step(Position(0, number), TREE, {})
        with pytest.raises(WriteFailed, match=rf"step-00000{number}: the checkpoint could not be written: No space"):
            told()
        checkpoints.settle()
        checkpoints.wait()


def test_what_follows_a_save_fails_as_the_save(tmp_path: Path) -> None:
    def refuse() -> None:
        raise UserError("gs://bucket: cannot be reached")

    checkpoints = Checkpoints(tmp_path, ["one"], 1, after=refuse)
    checkpoints.save_step(Position(0, 1), TREE, {})
    with pytest.raises(UserError, match="gs://bucket: cannot be reached"):
        checkpoints.wait()
    assert checkpoints.latest() == Position(0, 1)


def test_a_failure_is_not_lost_at_the_end_of_the_program(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
import numpy as np
from jasper_jax.checkpoints import checkpoint
from tests.checkpoints.test_checkpoint import full_disk
checkpoint.seal = full_disk
checkpoints = checkpoint.Checkpoints(Path({str(tmp_path)!r}), ["one"], 1)
checkpoints.save_step(checkpoint.Position(0, 1), {{"a": np.ones(2)}}, {{}})
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    told = [line for line in ended.stderr.splitlines() if line.startswith("jasper: ")]
    assert len(told) == 1, ended.stderr
    assert "step-000001: the checkpoint could not be written" in told[0]


def test_a_clock_that_jumps_does_not_end_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = time.time, itertools.count()
    checkpoints = Checkpoints(tmp_path, ["one"], 1)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + 86400 * next(looks) * (-1 if next(looks) % 3 else 1))
        checkpoints.save_final(0, {"a": np.arange(3.0)}, {})
    assert next(looks) > 1
    found = checkpoints.load(checkpoints.final(0), {"a": jax.ShapeDtypeStruct((3,), np.float32)})
    np.testing.assert_array_equal(found["a"], np.arange(3.0))


PROCESS = """
import os, sys, time
from pathlib import Path
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jasper_jax.checkpoints import arrays, checkpoint
from jasper_jax.checkpoints.checkpoint import Checkpoints, Position
from jasper_jax.runtime import joining
from jasper_jax.runtime.errors import UserError, WriteFailed

port, index, folder, failing = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
joining.connect(f"127.0.0.1:{port}", 2, index)
made = arrays.Saving.__init__

def shared(value):
    place = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
    return {"a": jax.make_array_from_callback((8,), place, lambda index: np.full(8, value, np.float32)[index])}

def full(*_):
    raise WriteFailed("the disk of 1 is full")

def refuse():
    if failing == "mirror":
        raise UserError("the mirror is gone")

if index == 1 and failing == "thread":
    arrays.Saving.wait = full
if index == 1 and failing == "start":
    def __init__(self, *given):
        made(self, *given)
        full()
    arrays.Saving.__init__ = __init__
checkpoints = Checkpoints(folder, ["one"], 2, after=refuse)
try:
    for step in range(1, 3):
        checkpoints.save_step(Position(0, step), shared(step), {})
        for calls in range(1, 10_000):
            checkpoints.settle()
            if not checkpoints._background._tasks:
                break
            time.sleep(0.01)
        assert calls & (calls - 1) == 0, calls
        assert checkpoints.latest() == Position(0, step)
        print("settled at call", calls, flush=True)
    checkpoints.save_final(0, shared(0), {})
    print(checkpoints.latest(), checkpoints.steps(0), flush=True)
except UserError as error:
    print(type(error).__name__, error, flush=True)
    os._exit(2)
"""


@pytest.mark.parametrize(
    ("failing", "told"),
    [
        ("nothing", "Position(stage=1, step=0) []"),
        ("thread", "WriteFailed the disk of 1 is full"),
        ("start", "WriteFailed the disk of 1 is full"),
        ("mirror", "UserError the mirror is gone"),
    ],
)
def test_two_processes_settle_at_the_same_call(failing: str, told: str, tmp_path: Path) -> None:
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(index), str(tmp_path), failing],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in started]
    last = [text.strip().splitlines()[-1] for text in said]
    assert last == [told, told], "\n".join(said)
    settled = [[line for line in text.splitlines() if line.startswith("settled")] for text in said]
    assert settled[0] == settled[1]
    assert len(settled[0]) == (2 if failing == "nothing" else 0)
