"""The two ways a command ends early: the user's input is wrong, or somebody asked it to stop."""

from __future__ import annotations


class UserError(Exception):
    """Input that cannot be used: a recipe, a file, a folder.

    The message is one line that names what is wrong, where, what is allowed and how to mend it. The command
    line prints it without a traceback and exits with code 2.
    """


class WriteFailed(UserError):
    """A write that went on in threads of its own failed; some of them may wait for minutes for what will not come.

    The command line ends the process without waiting for them.
    """


class Interrupted(Exception):
    """The job was asked to stop (SIGTERM, SIGINT), saved its state and can be continued.

    The command line exits with code 75 (EX_TEMPFAIL: "try again").
    """


def nearest(name: str, allowed: list[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``allowed``, or an empty string when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
