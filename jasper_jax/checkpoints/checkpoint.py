"""Checkpoints of a run, through Orbax; no other module imports it.

A run's ``checkpoints/`` holds ``start`` (the parameters before training) and one folder a stage: ``step-000200``
(trained leaves and optimizer state; the frozen ones are those the stage began with) and ``final`` (all parameters).
A checkpoint is written to a temporary name, renamed when whole, and counts only once its checksums stand beside it,
so a process killed at any moment leaves the previous one in force. Every load is checked against those checksums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed
from jasper_jax.runtime.files import parse_json, sha256_file, write_atomic

FORMAT = 1
_TRIES = 5
"""Orbax limits a save by the wall clock: when that jumps, a save may "time out" at once, and is begun again."""
_STEP = re.compile(r"step-\d{6,}")


@dataclasses.dataclass(frozen=True)
class Position:
    """Where training stands: ``step`` steps of stage ``stage`` are done."""

    stage: int
    step: int


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(
        self,
        folder: Path,
        stages: list[str],
        keep: int,
        other_recipe: Callable[[Any, Path], list[str]] | None = None,
        after: Callable[[], None] = lambda: None,
    ):
        """``other_recipe``: what differs between a checkpoint's recipe (with its path, for errors) and the run's.
        ``after`` runs whenever a checkpoint has become whole and the older ones are gone."""
        self.folder, self.stages, self.keep, self._other_recipe = folder, stages, keep, other_recipe
        self._after = after
        self._verified: set[Path] = set()
        self._pending: tuple[Any, Callable[[], Any], Path, Callable[[], None]] | None = None

    # ------------------------------------------------------------------ names

    def start(self) -> Path:
        return self.folder / "start"

    def final(self, stage: int) -> Path:
        return self.folder / f"{stage:02d}-{self.stages[stage]}" / "final"

    def step(self, stage: int, step: int) -> Path:
        return self.folder / f"{stage:02d}-{self.stages[stage]}" / f"step-{step:06d}"

    def steps(self, stage: int) -> list[int]:
        """Steps of a stage that have a whole checkpoint, ascending."""
        parent = self.final(stage).parent
        found = [p for p in parent.iterdir() if _STEP.fullmatch(p.name) and _is_whole(p)] if parent.is_dir() else []
        return sorted(int(p.name.removeprefix("step-")) for p in found)

    def has(self, path: Path) -> bool:
        """Whether the checkpoint is there and whole."""
        return _is_whole(path)

    def latest(self) -> Position:
        """The furthest point that can be continued from; (0, 0) when nothing was saved."""
        for stage in reversed(range(len(self.stages))):
            if _is_whole(self.final(stage)):
                return Position(stage + 1, 0)
            # A step holds what the stage trains; the rest is in the checkpoint before, which may have been deleted.
            if (not stage or _is_whole(self.final(stage - 1))) and (steps := self.steps(stage)):
                return Position(stage, steps[-1])
        return Position(0, 0)

    # ------------------------------------------------------------------ saving

    def save(
        self, path: Path, tree: Any, metadata: Mapping[str, Any], *, done: Callable[[], None] = lambda: None
    ) -> None:
        """Start writing ``tree``; returns once the values are copied. A save still under way is waited for first.

        ``done`` runs when the checkpoint is whole (used to drop older ones).
        """
        self.wait()
        self._verified.discard(path)
        _quiet()
        with _writing(path):
            processes.first_does(lambda: _make_way(path))
            # The step donates its buffers, and on CPU Orbax may hold views of them: give it copies of its own.
            copies = jax.tree.map(jnp.copy, tree)

            def write() -> Any:
                return ocp.save_async(str(path.absolute()), copies, custom_metadata={"format": FORMAT, **metadata})

            response = write()
        self._pending = (response, write, path, done)

    def save_step(self, position: Position, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Save within a stage and keep the last ``keep`` of them."""

        def prune() -> None:
            for old in self.steps(position.stage)[: -self.keep]:
                _remove(self.step(position.stage, old))

        self.save(self.step(position.stage, position.step), tree, _where(position, metadata), done=prune)

    def save_final(self, stage: int, params: Any, metadata: Mapping[str, Any]) -> None:
        """Save all parameters at the end of a stage, wait, and drop the stage's step checkpoints."""

        def prune() -> None:
            for old in self.steps(stage):
                _remove(self.step(stage, old))

        self.save(self.final(stage), params, _where(Position(stage + 1, 0), metadata), done=prune)
        self.wait()

    def wait(self) -> None:
        """Wait for the save under way, if any; raises what it raised."""
        if self._pending is None:
            return
        response, write, path, done = self._pending
        self._pending = None
        with _writing(path):
            for left in reversed(range(_TRIES)):
                try:
                    response.result()
                    break
                except TimeoutError:
                    if not left:
                        raise
                    _clear(path)
                    response = write()

            def seal() -> None:
                write_atomic(_sums(path), json.dumps(_checksums(path), indent=1))
                done()
                self._after()

            processes.first_does(seal)

    # ------------------------------------------------------------------ loading

    def load(self, path: Path, abstract: Any) -> Any:
        """The tree in ``path``, onto the shapes, dtypes and shardings of ``abstract``.

        Raises:
          UserError: it is missing, damaged, of a later format, of another recipe, or of other shapes.
        """
        self.metadata(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Ss]harding.*")
            try:
                with _orbax():
                    return ocp.load(str(path.absolute()), abstract)
            except (ValueError, KeyError, TypeError) as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{path}: the checkpoint does not fit this recipe: {first}") from error

    def metadata(self, path: Path) -> dict[str, Any]:
        """What was saved beside the arrays: position, recipe, environment.

        The checksums are compared before Orbax reads anything: it does not survive every damaged file quietly.

        Raises:
          UserError: the checkpoint is missing, damaged, of a later format or of another recipe.
        """
        if not _is_whole(path):
            raise UserError(f"{path}: no whole checkpoint there; run jasper train first")
        if path not in self._verified:
            processes.first_does(lambda: _verify(path))
        try:
            with _orbax():
                found = ocp.metadata(str(path.absolute())).custom_metadata
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{path}: the checkpoint's metadata cannot be read: {error}") from error
        metadata = dict(found) if isinstance(found, dict) else {}
        version = metadata.get("format")
        if not isinstance(version, int) or version > FORMAT:
            raise UserError(
                f"{path}: checkpoint format {version}, this program reads up to {FORMAT}; install a newer jasper-jax"
            )
        if self._other_recipe and (changed := self._other_recipe(metadata.get("recipe"), path)):
            raise UserError(
                f"{path}: the checkpoint is of another recipe: {'; '.join(changed[:3])}"
                f"{' and more' if changed[3:] else ''}; put this run's own back, or delete it and run again"
            )
        self._verified.add(path)
        return metadata


def _where(position: Position, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": position.stage, "step": position.step, **metadata}


def _sums(path: Path) -> Path:
    return path.with_name(path.name + ".sha256.json")


def _is_whole(path: Path) -> bool:
    return path.is_dir() and _sums(path).is_file()


def _orbax() -> contextlib.AbstractContextManager[Any]:
    """Orbax waits for every process at a load, except where this one works alone."""
    if not processes.is_alone_of_several():
        return contextlib.nullcontext()
    context = ocp.Context()
    own = jax.process_index()
    context.multiprocessing.primary_host, context.multiprocessing.active_processes = own, {own}
    return context


def _make_way(path: Path) -> None:
    _clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)


def _clear(path: Path) -> None:
    """Remove what stands where a checkpoint is to be written, whole or half written."""
    for leftover in (path, _sums(path)):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        leftover.unlink(missing_ok=True)
    for temporary in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(path: Path) -> None:
    _sums(path).unlink(missing_ok=True)
    shutil.rmtree(path)


def _verify(path: Path) -> None:
    """UserError when a file of the checkpoint is missing, new, or not of its recorded sha256."""
    remedy = f"delete {path} and run again to continue from the one before"
    try:
        expected = parse_json(_sums(path).read_bytes())
    except ValueError:
        expected = None
    if not isinstance(expected, dict):
        raise UserError(f"{_sums(path)}: not a list of checksums, the checkpoint is damaged; {remedy}")
    actual = _checksums(path)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise UserError(
                f"{path}/{name}: the checkpoint is damaged (sha256 differs or the file is missing); {remedy}"
            )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Every way in which Orbax fails to write, as one error that says why.

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
    """Keep the tracebacks of Orbax's threads off the terminal: what they raised, :meth:`Checkpoints.wait` raises."""
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        """tensorstore reports the end of further writes to an event loop that the first error has closed."""
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _checksums(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): sha256_file(p) for p in sorted(path.rglob("*")) if p.is_file()}


def abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
