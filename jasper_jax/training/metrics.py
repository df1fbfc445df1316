"""Metrics of a run as JSON lines, one object an event; TensorBoard and Weights & Biases are optional sinks.

On resume the file is cut back to the checkpoint's step, so that no step stands in it twice.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import naming, parse_json, write_atomic


class Sink(Protocol):
    """Somewhere else that numbers go to."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends events to ``metrics.jsonl`` and forwards numbers to the sinks."""

    def __init__(self, path: Path, sinks: list[Sink], *, keep_before: tuple[int, int]):
        """``keep_before``: (stage index, step) of the checkpoint continued from; later events are dropped."""
        self.path, self.sinks = path, sinks
        self._file = None
        if not processes.is_first():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_events(path) if _before(line, keep_before)]
        write_atomic(path, "".join(json.dumps(event) + "\n" for event in kept))
        self._file = path.open("a")

    def write(self, event: Mapping[str, Any]) -> None:
        """One event; numbers in ``terms`` and at the top level go to the sinks. Of several processes the first
        writes."""
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
        """Close the file and the sinks. What a full disk kept in the buffer was reported by ``write``."""
        with contextlib.suppress(OSError):
            if self._file:
                self._file.close()
        for sink in self.sinks:
            sink.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    events = []
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            event = parse_json(line)
            if not isinstance(event, dict):
                raise ValueError
            events.append(event)
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a JSON line; the file is damaged, move it away") from None
    return events


def _before(event: Mapping[str, Any], position: tuple[int, int]) -> bool:
    return (event.get("stage_index", -1), event.get("step", 0)) <= position


def make_sinks(names: list[str], folder: Path, run_name: str) -> list[Sink]:
    """The sinks of ``training.loggers``.

    Raises:
      UserError: a logger's package is not installed.
    """
    return [{"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}[name](folder, run_name) for name in names]


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
        self._run = wandb.init(project="jasper-jax", name=run_name, dir=str(folder), id=run_name, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
