"""Checkpoints of a run: their paths, which of them count, and when they are written, sealed and deleted.

A run's ``checkpoints/`` holds ``start`` (the parameters before training) and a folder per stage with ``step-000200``
(trained leaves and optimizer state; the frozen leaves are in the checkpoint the stage began with) and ``final`` (all
parameters). A checkpoint is written under a temporary name, renamed when complete, and counts once its checksums are
written. So after a kill at any moment the previous checkpoint still counts. Every load verifies the checksums.

Training continues during a save. When the files of all processes are in place, a background thread of process 0 writes
their checksums, deletes older checkpoints and updates the mirror.
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
from jasper_jax.checkpoints.seal import clear, is_complete, remove, seal, verify
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError, WriteFailed, first_three

FORMAT = 1
_STEP = re.compile(r"step-\d{6,}")


@dataclasses.dataclass(frozen=True)
class Position:
    """Progress of training: ``step`` steps of stage ``stage`` are done."""

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
        """``other_recipe(recorded, path)``: differences between a checkpoint's recipe and the run's.
        ``after``: called in process 0, in the background thread, when a checkpoint is complete and older ones are
        deleted."""
        self.folder, self.stages, self.keep = folder, stages, keep
        self._other_recipe, self._after = other_recipe, after
        self._verified: set[Path] = set()
        self._background = Background()

    # ------------------------------------------------------------------ names

    def start(self) -> Path:
        return self.folder / "start"

    def final(self, stage: int) -> Path:
        return self.folder / f"{stage:02d}-{self.stages[stage]}" / "final"

    def step(self, stage: int, step: int) -> Path:
        return self.final(stage).with_name(f"step-{step:06d}")

    def steps(self, stage: int) -> list[int]:
        """Steps of a stage that have a complete checkpoint, ascending."""
        paths = self.final(stage).parent.glob("step-*")
        return sorted(int(p.name[5:]) for p in paths if _STEP.fullmatch(p.name) and is_complete(p))

    has = staticmethod(is_complete)

    def latest(self) -> Position:
        """The last position that training can resume from; (0, 0) if nothing was saved."""
        for stage in reversed(range(len(self.stages))):
            if is_complete(self.final(stage)):
                return Position(stage + 1, 0)
            # A step needs the final checkpoint of the stage before, which holds the frozen leaves.
            if (not stage or is_complete(self.final(stage - 1))) and (steps := self.steps(stage)):
                return Position(stage, steps[-1])
        return Position(0, 0)

    # ------------------------------------------------------------------ saving

    def save(
        self, path: Path, tree: Any, metadata: Mapping[str, Any], *, done: Callable[[], None] = lambda: None
    ) -> None:
        """Wait for the previous save, then start writing ``tree``; returns once the values are copied.

        ``done`` runs when the checkpoint is complete.

        Raises:
          WriteFailed: as :meth:`wait`; or old files at ``path`` cannot be removed.
        """
        self.wait()
        self._verified.discard(path)

        def clear_path() -> None:
            with arrays.writing(path):
                clear(path)

        processes.first_does(clear_path)
        saving: arrays.Saving | WriteFailed
        try:
            saving = arrays.Saving(path, tree, {"format": FORMAT, **metadata})
        except WriteFailed as error:
            if processes.count() == 1:
                raise
            saving = error  # the other processes have started to write
        seals = processes.is_first()

        def finish() -> None:
            if isinstance(saving, WriteFailed):
                raise saving
            saving.wait()
            if seals:
                with arrays.writing(path):
                    seal(path)
                    done()
                    self._after()

        self._background.start(finish)

    def save_step(self, position: Position, tree: Any, metadata: Mapping[str, Any]) -> None:
        """Save within a stage and keep the stage's last ``keep`` such checkpoints."""
        path = self.step(position.stage, position.step)
        self.save(path, tree, _located(position, metadata), done=lambda: self._prune(position.stage, self.keep))

    def save_final(self, stage: int, params: Any, metadata: Mapping[str, Any]) -> None:
        """Save all parameters at the end of a stage, wait, and delete the stage's step checkpoints."""
        located = _located(Position(stage + 1, 0), metadata)
        self.save(self.final(stage), params, located, done=lambda: self._prune(stage, 0))
        self.wait()

    def _prune(self, stage: int, keep: int) -> None:
        for step in self.steps(stage)[: -keep or None]:
            remove(self.step(stage, step))

    def settle(self) -> None:
        """Raise the error of the save in progress, if it failed; all processes call this after every step.

        A single process raises at its next call, several when they compare next (see :class:`Background`).
        """
        self._background.settle()

    def wait(self) -> None:
        """Wait until the save in progress, if any, is complete; raises its error."""
        self._background.wait()

    # ------------------------------------------------------------------ loading

    def load(self, path: Path, abstract: Any) -> Any:
        """Load the tree in ``path`` with the shapes, dtypes and shardings of ``abstract``.

        Raises:
          UserError: as :meth:`metadata`, or the shapes differ.
        """
        self.metadata(path)
        return arrays.load(path, abstract)

    def metadata(self, path: Path) -> dict[str, Any]:
        """The metadata saved with the arrays: position, recipe, environment.

        Verifies the checksums before Orbax, which some damaged files crash, reads anything.

        Raises:
          UserError: the checkpoint is missing, damaged, of a later format or of another recipe.
        """
        if not is_complete(path):
            raise UserError(f"{path}: no complete checkpoint; run jasper train first")
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
                f"{path}: the checkpoint belongs to another recipe: {first_three(changed)}; restore this run's own, or"
                f" delete it and run again"
            )
        self._verified.add(path)
        return metadata


def _located(position: Position, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": position.stage, "step": position.step, **metadata}


def abstract(tree: Any) -> Any:
    """The shapes and dtypes of ``tree``, all on this process's first device: what :meth:`Checkpoints.load` needs."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
