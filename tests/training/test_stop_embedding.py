"""SIGTERM while several processes embed: all stop after their current batch, and nothing is half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jasper_jax.data.texts import TextStore
from jasper_jax.recipe.load import load_recipe
from jasper_jax.run import Run
from tests.tiny import recipe_tree
from tests.training.processes import free_port

SHARDS = 5  # of 32 texts

PROGRAM = """
import pathlib, sys, time
from jasper_jax.cli import main
from jasper_jax.runtime import processes
from jasper_jax.teachers import models

prepare, slow = models.TeacherEncoder.prepare, {slow}

def slowly(self, texts, kinds):
    encode = prepare(self, texts, kinds)
    def later():
        vectors = encode()
        if processes.index() in slow:
            pathlib.Path(sys.argv[2]).with_name(f"embedding.{{processes.index()}}").touch()
            for _ in range(6000):
                time.sleep(0.05)
        return vectors
    return later

models.TeacherEncoder.prepare = slowly
main()
"""


def start(recipe: Path, command: str, slow: tuple[int, ...]) -> list[subprocess.Popen[str]]:
    """Two processes of ``jasper COMMAND`` that take minutes for a shard where they are ``slow``."""
    address = {"JASPER_COORDINATOR": f"127.0.0.1:{free_port()}", "JASPER_PROCESSES": "2", "PYTHONFAULTHANDLER": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(slow=slow), command, str(recipe)],
            env={**os.environ, **address, "JASPER_PROCESS": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def made_in(folder: Path) -> dict[str, int]:
    """Complete shards of a store, and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("vectors-*")}


@pytest.mark.parametrize(("slow", "signalled"), [((0, 1), 1), ((1,), 0)])
def test_all_stop_and_the_same_command_continues(tmp_path, slow: tuple[int, ...], signalled: int) -> None:
    """Where only process 1 is slow, process 0 has made its shards and waits."""
    tree = recipe_tree(tmp_path)
    tree["teachers"] = tree["teachers"][:1]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    started = start(path, "run", slow)
    made = 0 if 0 in slow else 3  # shards of process 0
    folder = tmp_path / "run" / "vectors" / "a"
    deadline = time.monotonic() + 120
    while not all((tmp_path / f"embedding.{index}").exists() for index in slow) or len(made_in(folder)) < made:
        assert time.monotonic() < deadline
        assert all(one.poll() is None for one in started), "ended too early"
        time.sleep(0.05)
    os.kill(started[signalled].pid, signal.SIGTERM)
    errors = [one.communicate(timeout=120)[1] for one in started]  # the shard would take 5 minutes
    assert [one.returncode for one in started] == [75, 75], errors
    assert all("jasper: stopped; run the same command to continue" in error for error in errors), errors

    run = Run(load_recipe(str(path), []), progress=False)
    texts = TextStore.open(run.data.text_folder)
    assert len(texts.shards) == SHARDS
    shards = made_in(folder)
    assert len(shards) == made
    assert not list(folder.glob(".*"))
    store = run.vectors.embed(run.teachers[0], texts)
    assert store is not None
    assert shards.items() <= made_in(folder).items(), "not made again"
