"""Writing and reading a tree of arrays through Orbax's v1 API; no other module imports it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed

_YEARS = 10 * 365 * 86400
"""Seconds. Orbax limits a save by the wall clock, which may jump; a dead process is found out by JAX's heartbeats."""


class Saving:
    """A save under way. It holds its arrays until :meth:`wait` has returned, and no longer."""

    def __init__(self, path: Path, tree: Any, metadata: Mapping[str, Any]):
        """Start writing ``tree``; returns once nothing that is done to its arrays can change what is written.

        Called by all processes at the same point. A step that donates these arrays may run at once: see :func:`_apart`.
        """
        _quiet()
        self._path = path
        context = ocp.Context()
        context.asynchronous.timeout_secs = _YEARS
        # In one process the wait for folders made in the background is by the wall clock, too. In several it is not,
        # and a folder that only the first fails to make must not leave the others waiting for it here.
        context.asynchronous.create_directories_asynchronously = processes.count() > 1
        with writing(path), context:
            apart = jax.tree.map(_apart, tree)
            self._response: Any = ocp.save_async(str(path.absolute()), apart, custom_metadata=dict(metadata))

    def wait(self) -> None:
        """Until the files of all processes are in place under the final name; once, from any thread.

        Raises:
          WriteFailed: they could not be written; says why.
        """
        response, self._response = self._response, None
        with writing(self._path):
            try:
                response.result()
            finally:
                del response


def _apart(leaf: Any) -> Any:
    """``leaf``, copied where Orbax would hold a view of memory that the next step, which donates it, writes to.

    On CPU what Orbax takes for its host copy (``replica_slices.transfer_arrays_to_host``: ``np.asarray`` of each shard)
    is the array's own memory. From GPUs and TPUs it is a copy in host memory, finished when ``save_async`` returns.
    """
    on_host = not isinstance(leaf, jax.Array) or any(device.platform == "cpu" for device in leaf.devices())
    return jnp.copy(leaf) if on_host else leaf


def load(path: Path, abstract: Any) -> Any:
    """The tree in ``path``, onto the shapes, dtypes and shardings of ``abstract``.

    Raises:
      UserError: it is of other shapes.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]harding.*")
        try:
            with _reading():
                return ocp.load(str(path.absolute()), abstract)
        except (ValueError, KeyError, TypeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path}: the checkpoint does not fit this recipe: {first}") from error


def metadata(path: Path) -> dict[str, Any]:
    """What was saved beside the arrays.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with _reading():
            found = ocp.metadata(str(path.absolute())).custom_metadata
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: the checkpoint's metadata cannot be read: {error}") from error
    return dict(found) if isinstance(found, dict) else {}


def _reading() -> contextlib.AbstractContextManager[Any]:
    """Orbax waits for every process at a load, except where this one works alone."""
    if not processes.is_alone_of_several():
        return contextlib.nullcontext()
    context = ocp.Context()
    own = jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
    return context


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Every way in which a checkpoint cannot be written, as one error that says why.

    Arrays are written by tensorstore, whose errors are ValueErrors with the system's error number in the text.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        why = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or first
        raise WriteFailed(
            f"{path}: the checkpoint could not be written: {why}; free space or mend the folder, then run the same"
            f" command to continue from the checkpoint before"
        ) from error


@functools.cache
def _quiet() -> None:
    """Keep the tracebacks of Orbax's threads off the terminal: what they raised, :meth:`Saving.wait` raises."""
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        """tensorstore reports the end of further writes to an event loop that the first error has closed."""
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
