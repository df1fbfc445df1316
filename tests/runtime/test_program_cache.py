"""Compiled programs on disk: every process finds what it compiled, and no file is half a program."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jasper_jax.runtime import program_cache
from jasper_jax.runtime.program_cache import LEFTOVER, Programs
from tests.training.processes import run_together

COMPILE = """
import collections
from jasper_jax.runtime import joining, processes
from jasper_jax.runtime.program_cache import cache_programs

joining.connect()
processes.all_do(cache_programs)
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: events.update([event.rsplit("/", 1)[1]]))
for devices in (jax.devices(), jax.local_devices()):
    mesh = Mesh(np.array(devices), ("rows",))
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    x = jax.make_array_from_callback((4, 8), rows, lambda index: np.ones((4, 8), np.float32)[index])
    assert float(jax.jit(lambda x: (x @ x.T).sum())(x)) == 128
processes.barrier("compiled")
print("written", events["cache_misses"], "of", events["compile_requests_use_cache"], "found", events["cache_hits"])
processes.leave(0)
"""


def test_a_second_start_compiles_nothing_in_any_process(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        ended = run_together(COMPILE, JASPER_CACHE=str(tmp_path), XLA_FLAGS="--xla_force_host_platform_device_count=2")
        assert [code for code, _ in ended] == [0, 0], ended
        lines = [next(line for line in output.splitlines() if line.startswith("written")) for _, output in ended]
        found.append([[int(word) for word in line.split() if word.isdigit()] for line in lines])
    for (_, asked, _), (written, asked_again, hits) in zip(*found):
        assert asked_again == asked >= 2
        assert (written, hits) == (0, asked)
    assert not list((tmp_path / "compiled").glob(".*"))


def test_a_program_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(str(tmp_path), max_size=-1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            programs.put("step", b"program")
    assert programs.get("step") is None
    assert not list(tmp_path.iterdir())
    programs.put("step", b"program")
    programs.put("step", b"another")
    assert programs.get("step") == b"program"


def test_one_process_writes_a_program(tmp_path: Path) -> None:
    programs, part = Programs(str(tmp_path), max_size=-1), tmp_path / ".step-cache.part"
    part.write_bytes(b"prog")
    programs.put("step", b"program")
    assert programs.get("step") is None  # another process is writing it
    os.utime(part, (time.time() - LEFTOVER - 1,) * 2)  # and was killed
    programs.put("step", b"program")
    assert programs.get("step") == b"program"
    assert not part.exists()


def test_a_program_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(program_cache.compilation_cache, "put_executable_and_time", full)
    with pytest.warns(UserWarning, match="The compiled program jit_step could not be kept: .*No space left"):
        program_cache._write("key", 1.0, "jit_step", None, None, [])
    program_cache._write("key", 1.0, "jit_step", None, None, ["a callback"])  # is not kept
