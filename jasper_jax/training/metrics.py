"""Metrics of a run as JSON lines, one object per event; TensorBoard and Weights & Biases are optional sinks.

On resume the file is truncated to the checkpoint's step, so that no step is in it twice. Of several processes the
first alone writes the file and opens the sinks.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import naming, write_atomic, write_once
from jasper_jax.training.events import read_events
from jasper_jax.training.utilisation import Goodput
from jasper_jax.training.wandb_settings import refuse_wandb_settings

WANDB_ID = "wandb_id"
"""File of the run folder with the id of its Weights & Biases run, which a resumed run continues."""


class Sink(Protocol):
    """Another destination of the metrics' numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` by name at ``step``, counted over all stages."""

    def close(self) -> None:
        """Send what is buffered and release the destination."""


class Metrics:
    """Appends events to ``metrics.jsonl`` and forwards numbers to the sinks."""

    def __init__(self, path: Path, sinks: list[Sink], *, keep_before: tuple[int, int]):
        """``keep_before``: (stage index, step) of the checkpoint resumed from; later events are dropped, and at step 0
        the stage's evaluation before its first step, which is made again.

        Raises:
          UserError: the file is damaged, in every process.
        """
        self.path, self.sinks = path, sinks
        self.goodput = Goodput()
        self._file: IO[str] | None = None
        processes.first_does(lambda: self._open(keep_before))

    def _open(self, keep_before: tuple[int, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [event for event in read_events(self.path) if _is_before(event, keep_before)]
        write_atomic(self.path, "".join(json.dumps(event) + "\n" for event in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self.goodput = Goodput.of(kept)

    def write(self, event: Mapping[str, Any]) -> None:
        """Write one event; its numbers, at the top level and in ``terms``, also go to the sinks."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise naming(error, self.path) from None
        step = event.get("global_step")
        if step is not None and self.sinks:
            flat = {**{k: v for k, v in event.items() if k != "terms"}, **event.get("terms", {})}
            numbers = {f"{event['event']}/{k}": float(v) for k, v in flat.items() if isinstance(v, int | float)}
            for sink in self.sinks:
                sink.log(int(step), numbers)

    def close(self) -> None:
        """Close the file and the sinks. ``write`` has already reported a full disk."""
        with contextlib.suppress(OSError):
            if self._file:
                self._file.close()
        for sink in self.sinks:
            sink.close()


def _is_before(event: Mapping[str, Any], position: tuple[int, int]) -> bool:
    at = event.get("stage_index", -1), event.get("step", 0)
    return at < position or (at == position and position[1] > 0)


def make_sinks(names: list[str], folder: Path, run_name: str) -> list[Sink]:
    """The sinks of ``training.loggers``, opened in the first process; none in the others.

    Raises:
      UserError: a logger's package is not installed in the first process, or its server refuses; in every process.
    """
    kinds = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    sinks: list[Sink] = []
    processes.first_does(lambda: sinks.extend(kinds[name](folder, run_name) for name in names))
    return sinks


class _TensorBoard:
    def __init__(self, folder: Path, run_name: str):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "training.loggers: tensorboard needs the extra: pip install 'jasper-jax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, run_name: str):
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("training.loggers: wandb needs the extra: pip install 'jasper-jax[wandb]'") from None
        refuse_wandb_settings(folder)
        path = folder / WANDB_ID
        write_once(path, uuid.uuid4().hex.encode())
        run_id = path.read_text("utf-8").strip()
        self._run = wandb.init(project="jasper-jax", name=run_name, dir=str(folder), id=run_id, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
