"""What all processes of a run must have in common: recipe, versions, and the folders on disk. Checked at the start."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import differences


def refuse_unlike(recipe: Mapping[str, Any]) -> None:
    """Check that all processes run the same recipe with the same versions; called before any other collective.

    Raises:
      UserError: in every process, with the differing keys and both values.
    """
    if processes.count() == 1:
        return
    packages = {name: version(name) for name in ("jasper-jax", "jax", "jaxlib", "flax", "optax")}
    own = {"recipe": recipe, "versions": {"python": platform.python_version(), **packages}}
    first, *others = map(json.loads, processes.gather_text(json.dumps(own, sort_keys=True)))
    for number, other in enumerate(others, 1):
        if changes := differences(first, other, ""):
            raise UserError(
                f"processes 0 and {number} do not run the same: {first_three(changes)}; start all with one recipe and"
                f" one installation"
            )


def refuse_unshared(folders: Mapping[str, Path]) -> None:
    """Check that each of the ``folders``, by its key in the recipe, is one folder for all processes, and create it.

    What one process writes there the others read: texts, vectors, its part of a checkpoint. So each writes a small file
    and looks for that of process 0, which looks for all.

    Raises:
      UserError: in every process, with those that see other files or cannot write.
    """
    if processes.count() > 1:
        for folder, key in {folder: key for key, folder in folders.items()}.items():
            _refuse_unshared(key, folder)


def _refuse_unshared(key: str, folder: Path) -> None:
    token = processes.gather_text(uuid.uuid4().hex[:8])[0]
    files = [folder / f".shared.{token}.{index}.tmp" for index in range(processes.count())]
    own = files[processes.index()]

    def refuse(problems: Sequence[str]) -> None:
        """``problems``: of each process, or empty."""
        if wrong := [f"process {index} {problem}" for index, problem in enumerate(problems) if problem]:
            raise UserError(
                f"{key}: {folder} is not one folder for all processes: {first_three(wrong)}; put it on a disk that all"
                f" of them mount (NFS, Filestore, Lustre), which a mirror does not replace, or start one process"
            )

    try:
        processes.first_does(lambda: refuse([folder_problem(own)]))
        refuse(processes.gather_text("" if processes.is_first() else folder_problem(own, seen=files[0])))
        processes.first_does(lambda: refuse(["" if _appears(file) else _OTHER for file in files]))
    finally:
        with contextlib.suppress(OSError):
            own.unlink()


_OTHER = "has another folder of that name"
SECONDS = 2.0
"""How long a file of another process may take to appear on a network file system."""


def folder_problem(own: Path, seen: Path | None = None) -> str:
    """Why this process cannot write ``own``, or does not see another's file ``seen``; empty if it can and does."""
    try:
        own.parent.mkdir(parents=True, exist_ok=True)  # also refreshes what a network file system has cached
        if seen is not None and not _appears(seen):
            return f"{_OTHER} (on {socket.gethostname()})"
        own.touch()
    except OSError as error:
        return f"cannot write there: {error.strerror} (on {socket.gethostname()})"
    return ""


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
