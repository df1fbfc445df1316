"""Where the numbers of a run go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, MLflow, Trackio.

A run that was killed makes the steps after its last checkpoint again. None of them is kept twice: TensorBoard drops
what it has of them, Weights & Biases takes no step before its last one, and what MLflow and Trackio have recorded is
not sent again, for the numbers are the same.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jasper_jax.recipe.extras import LOGGERS as PACKAGES
from jasper_jax.runtime import processes
from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.files import write_once
from jasper_jax.runtime.inside import file_inside
from jasper_jax.training.wandb_settings import numbers_only, refuse_wandb_settings

PROJECT = "jasper-jax"


class Sink(Protocol):
    """Another destination of the metrics' numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` by name (``step/loss``, ``evaluation/loss``) at ``step``, counted over all stages."""

    def close(self) -> None:
        """Send what is buffered and release the destination."""


def make_sinks(names: list[str], folder: Path, run_name: str, begin: int = 0) -> list[Sink]:
    """The sinks of ``training.loggers``, opened in the first process; none in the others.

    ``begin``: steps of all stages that the checkpoint to continue from has; later ones are made again.

    Raises:
      UserError: a logger's package is not installed in the first process, or its server refuses; in every process.
    """
    sinks: list[Sink] = []

    def open_sinks() -> None:
        for name in names:
            if importlib.util.find_spec(PACKAGES[name]) is None:
                raise UserError(f"training.loggers: {name} needs the extra: pip install 'jasper-jax[{name}]'")
            sinks.append(LOGGERS[name](folder, run_name, begin))

    processes.first_does(open_sinks)
    return sinks


_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


def run_id(folder: Path, name: str) -> str:
    """The id of the folder's run in another program, kept in the file ``name``, so that a resumed run continues it.

    UserError: the file, which may be somebody else's, has no id, or is a link out of the folder. What it has is sent.
    """
    path = folder / name
    write_once(path, uuid.uuid4().hex.encode())
    try:
        known = read_regular(file_inside(path), 100).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); delete it, and a new run begins there"
        ) from None
    if not _ID.fullmatch(known):
        raise UserError(
            f"{path}: expected 1 to 64 letters, digits, - and _, got {known!r}; delete it, and a new run begins there"
        )
    return known


def _own_file(path: Path) -> Path:
    """``path``, which may not exist. UserError: it is a link out of its folder, and would be written."""
    if os.path.lexists(path):
        file_inside(path)
    return path


class TensorBoard:
    def __init__(self, folder: Path, run_name: str, begin: int):
        from tensorboardX import SummaryWriter

        place, purge_step = str(folder / "tensorboard"), begin + 1 if begin else None
        # The suffix: files of two commands in one second would have one name.
        self._writer = SummaryWriter(place, purge_step=purge_step, filename_suffix=f".{begin}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    def __init__(self, folder: Path, run_name: str, begin: int):
        import wandb  # type: ignore[import-not-found]

        refuse_wandb_settings(folder)
        known = run_id(folder, "wandb_id")
        options: dict[str, Any] = {"settings": numbers_only(), "resume": "allow"}
        self._run = wandb.init(project=PROJECT, name=run_name, dir=str(folder), id=known, **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _database(path: Path) -> str:
    """The address of an SQLite database. UserError: its path has a character with a meaning in addresses, and the
    tables would go into another file: ``a?/mlflow.db`` is the file ``a``, and ``%2F`` may be a slash."""
    if "?" in str(path) or "%" in str(path):
        raise UserError(
            f"training.loggers: mlflow: {path}: the path of its database may have no ? and no %; choose another"
            " run_dir, or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{path}"


class MLflow:
    """In ``mlflow.db`` of the run folder, unless ``MLFLOW_TRACKING_URI`` names a server."""

    def __init__(self, folder: Path, run_name: str, begin: int):
        from mlflow import MlflowClient  # type: ignore[import-not-found]
        from mlflow.entities import Metric  # type: ignore[import-not-found]

        self._metric = Metric
        address = os.environ.get("MLFLOW_TRACKING_URI") or _database(_own_file(folder.absolute() / "mlflow.db"))
        self._client = MlflowClient(tracking_uri=address)
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        known = run_id(folder, "mlflow_id")
        runs = self._client.search_runs([experiment], f"tags.jasper_id = '{known}'", max_results=1)
        run = runs[0] if runs else self._client.create_run(experiment, run_name=run_name, tags={"jasper_id": known})
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._recorded = Recorded(
            lambda name: (metric.step for metric in self._client.get_metric_history(self._run, name))
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._recorded.has(step, values):
            return
        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[self._metric(name, x, now, step) for name, x in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


class Trackio:
    """In Trackio's own folder (``TRACKIO_DIR``): ``trackio show --project jasper-jax``."""

    def __init__(self, folder: Path, run_name: str, begin: int):
        import trackio  # type: ignore[import-not-found]

        name = f"{run_name}-{run_id(folder, 'trackio_id')[:8]}"
        options: dict[str, Any] = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        earlier = trackio.SQLiteStorage.get_logs(PROJECT, name)
        self._recorded = Recorded(lambda metric: (row["step"] for row in earlier if metric in row))
        self._run = trackio.init(PROJECT, name=name, resume="allow", **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self._recorded.has(step, values):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Recorded:
    """What a program had of a run when it was opened, by the steps of each kind of event."""

    def __init__(self, steps: Callable[[str], Iterable[int]]):
        """``steps``: of the metric of a name."""
        self._last = {kind: max(steps(f"{kind}/loss"), default=-1) for kind in ("step", "evaluation")}

    def has(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether the event with these numbers was recorded."""
        kind = next(iter(values), "").partition("/")[0]
        return step <= self._last.get(kind, -1)


LOGGERS: dict[str, Callable[[Path, str, int], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
