"""Write and read trees of arrays with Orbax's v1 API; no other module imports Orbax."""

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
from jasper_jax.runtime.errors import UserError, WriteFailed, first_line

_YEARS = 10 * 365 * 86400
"""Seconds. Orbax's time limit of a save uses the wall clock, which may jump; JAX's heartbeats detect dead processes."""


class Saving:
    """A save in progress. It holds its arrays until :meth:`wait` returns."""

    def __init__(self, path: Path, tree: Any, metadata: Mapping[str, Any]):
        """Start writing ``tree``. All processes call it at the same point; then a step may donate the arrays."""
        _quiet()
        self._path = path
        context = ocp.Context()
        context.asynchronous.timeout_secs = _YEARS
        # In one process, waiting for folders created in the background has a wall-clock limit too. In several it has
        # none, and if only process 0 fails to create a folder, the others must not wait for it here.
        context.asynchronous.create_directories_asynchronously = processes.count() > 1
        with writing(path), context:
            self._response: Any = ocp.save_async(
                str(path.absolute()), jax.tree.map(_detached, tree), custom_metadata=dict(metadata)
            )

    def wait(self) -> None:
        """Wait until the files of all processes have their final name; call once, from any thread.

        Raises:
          WriteFailed: with the reason.
        """
        response, self._response = self._response, None
        with writing(self._path):
            try:
                response.result()
            finally:
                del response


def _detached(leaf: Any) -> Any:
    """``leaf``, copied if Orbax would hold a view of memory that the next step, to which it is donated, overwrites.

    On CPU, Orbax's host copy (``replica_slices.transfer_arrays_to_host``: ``np.asarray`` of each shard) is the array's
    own memory. On GPUs and TPUs it is a real copy, finished when ``save_async`` returns.
    """
    on_host = not isinstance(leaf, jax.Array) or any(device.platform == "cpu" for device in leaf.devices())
    return jnp.copy(leaf) if on_host else leaf


def load(path: Path, abstract: Any) -> Any:
    """Load the tree in ``path`` with the shapes, dtypes and shardings of ``abstract``; UserError if it does not fit.

    Where the shardings are of this process's devices alone, it does not wait for the others.
    """
    own = jax.process_count() > 1 and all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(abstract))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]harding.*")
        try:
            with _by_itself() if own else contextlib.nullcontext():
                return ocp.load(str(path.absolute()), abstract)
        except Exception as error:
            if not isinstance(error, ValueError | KeyError | TypeError) and type(error) is not Exception:  # Orbax's own
                raise
            raise UserError(f"{path}: the checkpoint does not fit this recipe: {first_line(error)}") from error


def metadata(path: Path) -> dict[str, Any]:
    """The metadata saved with the arrays; UserError if it cannot be read."""
    try:
        with _by_itself() if jax.process_count() > 1 else contextlib.nullcontext():
            saved = ocp.metadata(str(path.absolute())).custom_metadata
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: the checkpoint's metadata cannot be read: {error}") from error
    return dict(saved) if isinstance(saved, dict) else {}


def _by_itself() -> contextlib.AbstractContextManager[Any]:
    """Within it Orbax reads in this process without waiting for the others."""
    context, own = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
    return context


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn every error of writing the checkpoint ``path`` into one :class:`WriteFailed` with the reason.

    tensorstore writes the arrays; its errors are ValueErrors with the system's error number in the text.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or first_line(error)
        raise WriteFailed(
            f"{path}: the checkpoint could not be written: {reason}; free space or repair the folder, then run the"
            f" same command to continue from the previous checkpoint"
        ) from error


@functools.cache
def _quiet() -> None:
    """Suppress the tracebacks of Orbax's threads, whose errors :meth:`Saving.wait` raises."""
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        """Skip tensorstore's reports of later writes to an event loop that the first error has closed."""
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook
