"""Python processes that a command starts: none searches the current folder for modules. What lies there may be
somebody's data with a ``json.py``, which ``python -m`` would run."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` with this interpreter."""
    return [sys.executable, "-P", "-m", module, *arguments]


def keep_to_installed_modules() -> None:
    """The same for the processes that libraries start from the command ``jasper`` (``multiprocessing``)."""
    if any(Path(part).name == "jasper" for part in sys.orig_argv):
        os.environ["PYTHONSAFEPATH"] = "1"
