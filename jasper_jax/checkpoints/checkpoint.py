"""Checkpoints of a run: where they stand, which count, when they are written, sealed and deleted.

A run's ``checkpoints/`` holds ``start`` (the parameters before training) and one folder a stage: ``step-000200``
(trained leaves and optimizer state; the frozen ones are those the stage began with) and ``final`` (all parameters).
A checkpoint is written to a temporary name, renamed when whole, and counts only once its checksums stand beside it,
so a process killed at any moment leaves the previous one in force. Every load is checked against those checksums.

A save goes on beside the steps that follow it. As soon as the files of all processes are in place, the first process
writes their checksums, deletes the older checkpoints and tells the mirror, all in the thread that waited for the files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jasper_jax.checkpoints import arrays
from jasper_jax.checkpoints.background import Background
from jasper_jax.checkpoints.seal import is_complete, make_way, remove, seal, verify
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed

FORMAT = 1
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
        ``after`` runs whenever a checkpoint has become complete and the older ones are gone, in a thread of its own,
        in the first process."""
        self.folder, self.stages, self.keep, self._other_recipe = folder, stages, keep, other_recipe
        self._after = after
        self._verified: set[Path] = set()
        self._background = Background()

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
        found = [p for p in parent.iterdir() if _STEP.fullmatch(p.name) and is_complete(p)] if parent.is_dir() else []
        return sorted(int(p.name.removeprefix("step-")) for p in found)

    def has(self, path: Path) -> bool:
        """Whether the checkpoint is there and whole."""
        return is_complete(path)

    def latest(self) -> Position:
        """The furthest point that can be continued from; (0, 0) when nothing was saved."""
        for stage in reversed(range(len(self.stages))):
            if is_complete(self.final(stage)):
                return Position(stage + 1, 0)
            # A step holds what the stage trains; the rest is in the checkpoint before, which may have been deleted.
            if (not stage or is_complete(self.final(stage - 1))) and (steps := self.steps(stage)):
                return Position(stage, steps[-1])
        return Position(0, 0)

    # ------------------------------------------------------------------ saving

    def save(
        self, path: Path, tree: Any, metadata: Mapping[str, Any], *, done: Callable[[], None] = lambda: None
    ) -> None:
        """Start writing ``tree``; returns once the values are copied. A save still under way is waited for first.

        ``done`` runs when the checkpoint is complete (used to drop older ones).

        Raises:
          WriteFailed: what :meth:`wait` raises; the old files cannot be removed.
        """
        self.wait()
        self._verified.discard(path)

        def clear() -> None:
            with arrays.writing(path):
                make_way(path)

        processes.first_does(clear)
        try:
            saving = arrays.Saving(path, tree, {"format": FORMAT, **metadata})
        except WriteFailed as error:
            if processes.count() == 1:
                raise
            self._background.fail(error)  # the others have begun to write
            return
        seals = processes.is_first()

        def finish() -> None:
            saving.wait()
            if seals:
                with arrays.writing(path):
                    seal(path)
                    done()
                    self._after()

        self._background.start(finish)

    def save_step(self, position: Position, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Save within a stage and keep the last ``keep`` of them."""

        def prune() -> None:
            for old in self.steps(position.stage)[: -self.keep]:
                remove(self.step(position.stage, old))

        self.save(self.step(position.stage, position.step), tree, _where(position, metadata), done=prune)

    def save_final(self, stage: int, params: Any, metadata: Mapping[str, Any]) -> None:
        """Save all parameters at the end of a stage, wait, and drop the stage's step checkpoints."""

        def prune() -> None:
            for old in self.steps(stage):
                remove(self.step(stage, old))

        self.save(self.final(stage), params, _where(Position(stage + 1, 0), metadata), done=prune)
        self.wait()

    def settle(self) -> None:
        """Raise what a save under way has raised since; called by every process after every step, and cheap there.

        One process raises it at the next call, several at a call at which they compare (see :class:`Background`).
        """
        self._background.settle()

    def wait(self) -> None:
        """Wait until the save under way, if any, is complete; raises what it raised."""
        self._background.wait()

    # ------------------------------------------------------------------ loading

    def load(self, path: Path, abstract: Any) -> Any:
        """The tree in ``path``, onto the shapes, dtypes and shardings of ``abstract``.

        Raises:
          UserError: it is missing, damaged, of a later format, of another recipe, or of other shapes.
        """
        self.metadata(path)
        return arrays.load(path, abstract)

    def metadata(self, path: Path) -> dict[str, Any]:
        """What was saved beside the arrays: position, recipe, environment.

        The checksums are compared before Orbax reads anything: it does not survive every damaged file quietly.

        Raises:
          UserError: the checkpoint is missing, damaged, of a later format or of another recipe.
        """
        if not is_complete(path):
            raise UserError(f"{path}: no whole checkpoint there; run jasper train first")
        if path not in self._verified:
            processes.first_does(lambda: verify(path))
        metadata = arrays.metadata(path)
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


def abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
