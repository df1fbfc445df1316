"""The file that a command writes its result to: looked at before any work, so that nothing else is lost for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import refuse_blocked


def refuse_output(path: Path, file: str, reads: Iterable[Path] = ()) -> None:
    """UserError if ``path`` cannot be replaced by the command's result, or should not be.

    ``file``: what to give, e.g. "a .npy file". ``reads``: the files that the command reads, and the folders whose files
    it reads. A device or pipe would be replaced by a file, which of /dev/null nobody wants.
    """
    refuse_blocked(path, "give another file")
    if not path.exists():
        return
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of {file}")
    if not path.is_file():
        raise UserError(f"{path}: is a pipe or a device, which the result would replace; give the name of {file}")
    for source in reads:
        inside = source.is_dir() and path.resolve().is_relative_to(source.resolve())
        if inside or (source.exists() and path.samefile(source)):
            raise UserError(f"{path}: this command reads it, and the result would overwrite it; give another file")
