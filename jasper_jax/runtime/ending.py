"""How a command ends: what a user can mend is one line and an exit code, a defect keeps its traceback."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jasper_jax.runtime import processes
from jasper_jax.runtime.children import keep_to_installed_modules
from jasper_jax.runtime.compilers import missing_platform
from jasper_jax.runtime.console import new_console, print_traceback
from jasper_jax.runtime.errors import Interrupted, UserError, WriteFailed
from jasper_jax.runtime.interrupt import EXIT_CODE, process_of_command
from jasper_jax.runtime.library_output import shown_logs

_FILE_ERRORS = (
    *(errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EIO),
    *(errno.EFBIG, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY),
)
"""Errors that a disk or a user's path can cause; other errors are defects and keep their traceback."""
_LONGEST = 1000
"""Characters of a message: a name or value in it may be far longer, and the remedy is at its end."""


def run_to_end(app: Callable[[], Any]) -> None:
    """Run the command line ``app``: expected failures become one line and an exit code (2: input, 75: stopped and
    saved)."""
    _use_utf_8()
    keep_to_installed_modules()
    try:
        with process_of_command(), shown_logs():
            _run(app)
    except SystemExit as ending:
        processes.leave(ending.code if isinstance(ending.code, int) else 0)
        raise


def _use_utf_8() -> None:
    """Start this command again in Python's UTF-8 mode if the locale has another encoding: names of files in a recipe,
    and what libraries read and write, are UTF-8 whatever the locale."""
    command = any(Path(part).name == "jasper" or part == "jasper_jax.cli" for part in sys.orig_argv)
    if command and not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _run(app: Callable[[], Any]) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without ± and – is no reason to fail
    try:
        app()
    except WriteFailed as error:
        _print_error(str(error), error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    except UserError as error:
        _fail(str(error), 2, error)
    except Interrupted as error:
        _fail(str(error) or "stopped; run the same command to continue", EXIT_CODE, error)
    except KeyboardInterrupt as error:
        _fail("interrupted; run the same command to continue", 130, error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            sys.excepthook = lambda _, defect, __: print_traceback(defect)
            processes.end_soon(1)
            raise
        path = error.filename or "a file"
        _fail(f"{path}: {error.strerror}; free space or choose another folder (run_dir=...), then run again", 2, error)
    except Exception as error:
        sys.excepthook = lambda _, defect, __: print_traceback(defect)
        if problem := missing_platform():
            _fail(problem, 2, error)
        processes.end_soon(1)
        raise


def _fail(message: str, code: int, error: BaseException) -> None:
    _print_error(message, error)
    processes.end_soon(code)
    sys.exit(code)


def _print_error(message: str, error: BaseException) -> None:
    if os.environ.get("JASPER_DEBUG"):
        print_traceback(error)
    line = " ".join(message.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    new_console(sys.stderr).print(f"jasper: {line}")
