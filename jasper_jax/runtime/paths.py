"""A path as a user writes it: ``~``, environment variables, a pattern of several files."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import leads_out


def user_path(text: str | os.PathLike[str], key: str = "path", *, new: bool = False) -> Path:
    """The path that ``text`` means: itself if it exists, else with ``~`` and ``$VARIABLE`` replaced.

    In an address (``gs://...``) nothing is replaced: the environment stays on this machine. ``new``: nothing need
    have the name, and no message shows it unless who types the command chose it.

    Raises:
      UserError: a variable is not set, there is no user ``~name``, or nothing has the name that a variable is part of:
        a message with it could show a secret of the environment. ``key`` says where ``text`` stands.
    """
    plain = os.fspath(text)
    if "\0" in plain:
        raise UserError(f"{key}: {plain!r} has a NUL character, which a path cannot contain")
    if (not plain.startswith("~") and "$" not in plain) or "://" in plain or os.path.lexists(plain):
        return Path(plain)
    expanded = os.path.expandvars(os.path.expanduser(plain))
    if unset := re.search(r"\$(\w+|\{\w+\})", expanded):
        raise UserError(f"{key}: {plain!r}: the environment variable {unset[1].strip('{}')} is not set; set it first")
    if expanded.startswith("~"):
        raise UserError(
            f"{key}: {plain!r}: there is no such user; write the folder out, or ./~ for a file of that name"
        )
    if not new and not _exists(_up_to_variable(plain)):
        raise UserError(f"{key}: {plain!r}: there is no such file or folder, with the environment variable replaced")
    return Path(expanded)


def _up_to_variable(text: str) -> str:
    """The part of a path that ends with the last name which has a variable in it; empty without one."""
    parts = Path(text).parts
    return str(Path(*parts[: max((number for number, part in enumerate(parts, 1) if "$" in part), default=0)]))


def _exists(text: str) -> bool:
    """Whether a path or pattern, with its variables replaced, leads to something."""
    path = os.path.expandvars(os.path.expanduser(text))
    try:
        return os.path.lexists(path) or next(glob.iglob(path), None) is not None
    except RecursionError:  # of a pattern with hundreds of parts
        return False


def folder_to_make(text: str, key: str) -> Path:
    """:func:`user_path` of a folder that is made if it does not exist.

    Raises:
      UserError: as there and in :func:`refuse_drop_in`; or a variable is in the name of a folder that does not exist: a
        recipe from elsewhere could have a secret of the environment written where others see it.
    """
    path = user_path(text, key, new=True)
    if not os.path.lexists(text) and not os.path.isdir(user_path(_up_to_variable(text), key, new=True)):
        raise UserError(
            f"{key}: {text!r}: no folder is made with a name from the environment; make it first (mkdir -p), up to the"
            " last variable"
        )
    refuse_drop_in(path, key)
    return path


def refuse_drop_in(folder: str | os.PathLike[str], key: str) -> None:
    """UserError: ``folder``, which a recipe names to be written, has a name that ends with ``.d``.

    By convention programs run what lies in such a folder: on some systems every shell reads all files of
    ``~/.bashrc.d``, and a prompt in recipe.yaml may be ``$(a command)``.
    """
    if os.path.basename(os.path.realpath(folder)).lower().endswith(".d"):
        raise UserError(
            f"{key}: {os.fspath(folder)!r}: programs run what lies in folders whose name ends with .d, as shells do in"
            " ~/.bashrc.d; choose another name"
        )


def real_folder(path: Path) -> Path:
    """``path`` with a name of its own, beside which another folder can be written: the target of a link, the folder
    that ``.`` or ``..`` is."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def matching_files(pattern: str, key: str = "path") -> list[Path]:
    """The files that a path or glob means, sorted: an existing file of that name before a pattern.

    Folders that exist are literal too, so that ``[2024] notes/*.txt`` means files in the folder ``[2024] notes``.

    Raises:
      UserError: as :func:`user_path`; or what a pattern finds leads by a link out of the folder that is searched.
    """
    path = user_path(pattern, key, new=True)
    if os.path.isfile(path):
        return [path]
    literal = Path(path.anchor)
    parts = list(path.parts[1:] if path.anchor else path.parts)
    while parts and os.path.lexists(literal / parts[0]):
        literal /= parts.pop(0)
    escaped = os.path.join(glob.escape(str(literal)), *parts) if str(literal) != "." else os.path.join("", *parts)
    try:
        found = sorted(Path(name) for name in glob.glob(escaped, recursive=True) if os.path.isfile(name))
    except RecursionError:
        raise UserError(f"{key}: {pattern[:80]!r} ... has {len(parts):,} parts after its first *; name fewer") from None
    for file in found:
        if leads_out(file, literal):
            raise UserError(
                f"{key}: {pattern!r} finds {file}, a link to a file outside {literal}, which whoever made the folder"
                " may have chosen; name that file by itself if it is meant, or put it there (cp -L)"
            )
    return found
