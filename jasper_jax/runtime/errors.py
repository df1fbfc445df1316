"""The exceptions that end a command early: wrong input, a failed write, a request to stop."""

from __future__ import annotations

from collections.abc import Sequence

from jasper_jax.runtime.shown import shown


class UserError(Exception):
    """Input that cannot be used: a recipe, a file, a folder.

    The message is one line: the key or file, the value, the values allowed, and the remedy. The command line prints it
    without a traceback and exits with code 2. Its text is :func:`jasper_jax.runtime.shown.shown`.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class WriteFailed(UserError):
    """A write in background threads failed, and some of these threads may block for minutes.

    The command line ends the process without joining them.
    """


class Interrupted(Exception):
    """The job was asked to stop (SIGTERM, SIGINT) and has saved its state; the same command continues it.

    The command line exits with code 75 (EX_TEMPFAIL: "try again"). Called from Python, a SIGINT becomes a
    KeyboardInterrupt instead (``runtime.interrupt``).
    """


def first_line(error: BaseException) -> str:
    """The first line of the error's text, or its type's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def first_three(changes: Sequence[str]) -> str:
    """``a; b; c and more``: enough of a list for an error of one line."""
    return "; ".join(changes[:3]) + (" and more" if changes[3:] else "")


def nearest(name: str, allowed: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``allowed``, or an empty string if none is close."""
    import difflib

    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
