"""A bucket in memory, and a run folder to be mirrored in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from jasper_jax.recipe.load import HEADER
from tests.checkpoints.mirrored import (
    FIRST,
    SECOND,
    write_checkpoint,
)


@pytest.fixture
def bucket() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with its start and two steps."""
    folder = tmp_path / "run"
    for name in ("start", FIRST, SECOND):
        write_checkpoint(folder, name)
    (folder / "recipe.yaml").write_text(HEADER + "name: one\n")
    (folder / "metrics.jsonl").write_text('{"step": 4}\n')
    return folder
