"""Settings of Weights & Biases: it gets the numbers and no more, and files that it finds by itself do not say where the
API key goes.

It reads ``wandb/settings`` of the current folder, which may be somebody's data. A ``base_url`` there gets the key of
the environment, and other settings name a proxy, or a file that is sent.
"""

from __future__ import annotations

import configparser
import os
import tempfile
from pathlib import Path

from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.inside import file_inside

PUBLIC = "https://api.wandb.ai"
_HARMLESS = frozenset({"entity", "project", "mode", "disabled"})
"""What ``wandb init`` and ``wandb offline`` write, besides the address."""

NUMBERS_ONLY = {"console": "off", "disable_git": True, "disable_code": True} | {
    "x_disable_meta": True,
    "x_save_requirements": False,
}
"""By itself it also sends what is printed, the command with its arguments, uncommitted changes and the remote of the
current folder's repository, and the machine's name: paths and names that a project's other readers need not see."""


def numbers_only() -> dict[str, str | bool]:
    """``NUMBERS_ONLY`` without what the environment sets, such as ``WANDB_CONSOLE=wrap``; but git is never asked about
    the current folder: a repository's own settings name programs that git runs."""
    kept = {key: value for key, value in NUMBERS_ONLY.items() if f"WANDB_{key.upper()}" not in os.environ}
    return {**kept, "disable_git": True}


def refuse_wandb_settings(run_folder: Path) -> None:
    """UserError: a file of the current folder, the run's, or the temporary one (read where the current one cannot be
    written) has another setting than these, or an address other than the public one and ``WANDB_BASE_URL``."""
    servers = {PUBLIC, os.environ.get("WANDB_BASE_URL", PUBLIC).rstrip("/")}
    for place in (Path(), run_folder, Path(tempfile.gettempdir())):
        for file in (place / "wandb" / "settings", place / ".wandb" / "settings"):
            for key, value in _settings(file) if os.path.lexists(file) else ():
                if key not in _HARMLESS and not (key == "base_url" and value.rstrip("/") in servers):
                    raise UserError(
                        f"{file}: sets {key} of Weights & Biases, and a data set's folder may have such a file to get"
                        f" your API key; take it out of the file, and set WANDB_{key.upper()} if it is meant"
                    )


def _settings(file: Path) -> list[tuple[str, str]]:
    """All settings of a file, whatever their section."""
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
    try:
        parser.read_string(read_record_bytes(file_inside(file)).decode())
    except (OSError, ValueError, configparser.Error) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); move it away") from None
    return [(key, value or "") for section in parser.sections() for key, value in parser.items(section)]
