"""Compiled programs on disk: what a process compiled, it and others read at the next start.

JAX writes its cache in process 0 alone, because processes that write one file at once contend for it. But a process
looks for the programs of its own devices under keys of its own, and on a disk of its own it finds no others either. So
here every process writes, and no two write one file: who creates the temporary file writes it, the others leave it. A
program appears complete, by a rename: JAX would keep what a killed process left of one, and compile it at every start.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache, compiler, config
from jax._src.lru_cache import LRUCache

from jasper_jax.runtime.user_cache import cache_folder, private_cache

LEFTOVER = 600.0
"""Seconds after which a temporary file is of a process that was killed."""


def cache_programs() -> None:
    """Keep compiled programs on disk between runs (``JASPER_CACHE``, else the user's cache folder).

    The small ones too: a command starts with hundreds of them, and reading one takes a third of compiling it or less.

    Raises:
      UserError: others may write there. A program is run as it is found, so its cache is for this user alone.
    """
    with contextlib.suppress(OSError):  # JAX warns when it cannot write one
        private_cache("compiled")
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.get_file_cache = _programs
    compiler._cache_write = _write


class Programs(LRUCache):
    """JAX's cache folder with writes that are atomic, by one process."""

    def put(self, key: str, value: bytes) -> None:
        """Write a program unless it exists or another process is writing it."""
        if self.eviction_enabled:  # JAX_COMPILATION_CACHE_MAX_SIZE is set: JAX locks the folder for each write
            super().put(key, value)
            return
        path = Path(str(self.path), f"{key}-cache")
        part = path.with_name(f".{path.name}.part")
        if path.exists():
            return
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > LEFTOVER:
                part.unlink()
        try:
            with open(part, "xb") as file:
                file.write(value)
            os.replace(part, path)
        except FileExistsError:
            return
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _programs(path: str) -> tuple[Programs, str]:
    """In place of JAX's ``get_file_cache``."""
    return Programs(path, max_size=config.compilation_cache_max_size.value), path


def _write(key: str, seconds: float, name: str, backend: Any, executable: Any, host_callbacks: Any) -> None:
    """In place of JAX's ``_cache_write``, for every process; a failure is a warning, as there."""
    if host_callbacks:  # addresses in this process
        return
    try:
        compilation_cache.put_executable_and_time(key, name, executable, backend, int(seconds))
    except (OSError, jax.errors.JaxRuntimeError) as error:
        warnings.warn(f"The compiled program {name} could not be kept: {error}", stacklevel=2)
