"""Commands that messages advise: users copy them into a shell, where a folder called ``$(rm -r x)`` stays a name."""

from __future__ import annotations

import json
import os
import shlex


def shell_word(text: str | os.PathLike[str]) -> str:
    """``text`` as one word of a POSIX shell; as it is if it has no character with a meaning."""
    return shlex.quote(os.fspath(text))


def python_command(code: str, *paths: str | os.PathLike[str]) -> str:
    """``python -c`` with ``code`` in which each ``{}`` is one of ``paths``, as a string of Python."""
    literals = (json.dumps(os.fspath(path), ensure_ascii=False) for path in paths)
    return f"python -c {shell_word(code.format(*literals))}"
