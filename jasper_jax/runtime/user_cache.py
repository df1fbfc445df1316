"""The user's cache: models, compiled programs and verdicts that later commands trust, so nobody else may write them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.shell import shell_word


def cache_folder() -> Path:
    """``JASPER_CACHE``, else ``XDG_CACHE_HOME/jasper``, else ``~/.cache/jasper``."""
    if chosen := os.environ.get("JASPER_CACHE"):
        return user_path(chosen, "JASPER_CACHE", new=True).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "jasper"


def private_cache(name: str) -> Path:
    """The subfolder ``name`` of the cache, made if necessary, for this user alone.

    Raises:
      UserError: somebody else may write it, or the cache.
      OSError: it cannot be made.
    """
    cache = cache_folder()
    for folder in (cache, cache / name):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        refuse_shared(folder)
    return cache / name


def refuse_shared(folder: Path) -> None:
    """UserError: a user other than this one and root may write the existing ``folder``."""
    if not hasattr(os, "getuid"):
        return
    found = folder.stat()
    what = "and could change the models and compiled programs that are read from it"
    if found.st_uid not in (0, os.getuid()):
        raise UserError(
            f"{folder}: belongs to another user (number {found.st_uid}), who may write it, {what}; set JASPER_CACHE to"
            " a folder of your own"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{folder}: other users may write it (mode {stat.S_IMODE(found.st_mode):03o}), {what}; delete it if one may"
            f" have, else chmod go-w {shell_word(folder)}; or set JASPER_CACHE to a folder of your own"
        )
