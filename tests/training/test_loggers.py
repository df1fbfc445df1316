"""The real loggers, offline: what a killed run had recorded is there once, and what it had not is added."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from jasper_jax.recipe.config_training import Training
from jasper_jax.recipe.extras import LOGGERS as PACKAGES
from jasper_jax.training.loggers import LOGGERS, Recorded, make_sinks

LOGGED = [(1, "step"), (2, "step"), (2, "evaluation"), (3, "step")]
AGAIN = [(2, "step"), (2, "evaluation"), (3, "step"), (4, "step"), (4, "evaluation")]


def log(name: str, folder: Path, events: list[tuple[int, str]], begin: int = 0) -> None:
    (sink,) = make_sinks([name], folder, "tiny", begin)
    for step, kind in events:
        sink.log(step, {f"{kind}/loss": 1 / step, f"{kind}/fc1/cosine": 0.5})
    sink.close()


def test_every_name_of_a_recipe_has_a_logger_and_a_package() -> None:
    (names,) = get_args(Training.model_fields["loggers"].annotation)
    assert set(get_args(names)) == set(LOGGERS) == set(PACKAGES)


def test_what_is_recorded_is_told_by_kind() -> None:
    recorded = Recorded(lambda name: {"step/loss": [1, 2, 3], "evaluation/loss": [2]}[name])
    asked = [(3, "step"), (4, "step"), (2, "evaluation"), (3, "evaluation"), (1, "start")]
    assert [recorded.has(step, {f"{kind}/x": 0.0}) for step, kind in asked] == [True, False, True, False, False]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, in mlflow
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log("mlflow", tmp_path, LOGGED)
    log("mlflow", tmp_path, AGAIN, begin=1)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("jasper-jax").experiment_id])
    assert run.info.run_name == "tiny"
    history = {name: client.get_metric_history(run.info.run_id, name) for name in ("step/loss", "evaluation/loss")}
    assert [(m.step, m.value) for m in history["step/loss"]] == [(k, 1 / k) for k in (1, 2, 3, 4)]
    assert [m.step for m in history["evaluation/loss"]] == [2, 4]


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is first imported
    trackio = pytest.importorskip("trackio")
    log("trackio", tmp_path, LOGGED)
    log("trackio", tmp_path, AGAIN, begin=1)
    (name,) = trackio.SQLiteStorage.get_runs("jasper-jax")
    assert name.startswith("tiny-")
    rows = trackio.SQLiteStorage.get_logs("jasper-jax", name)
    assert [row["step"] for row in rows if "step/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "evaluation/loss" in row] == [2, 4]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    if not hasattr(wandb, "Settings"):
        pytest.skip("a stand-in for the package")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(sys, "argv", ["jasper", "run", "mine.yaml", "stores=/customers/acme"])
    log("wandb", tmp_path, LOGGED)
    log("wandb", tmp_path, AGAIN, begin=1)
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    known = (tmp_path / "wandb_id").read_text()
    assert len(runs) >= 1
    # offline-run-TIME-ID, with -1 after it for a second folder of the same second
    assert {run.name.split("-")[3] for run in runs} == {known}
    sent = b"".join(file.read_bytes() for run in runs for file in run.glob("*.wandb"))
    assert b"step/loss" in sent
    assert not [word for word in ("acme", "mine.yaml", "jax==") if word.encode() in sent]


def test_tensorboard_is_told_which_steps_are_made_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    log("tensorboard", tmp_path, LOGGED)
    log("tensorboard", tmp_path, AGAIN, begin=1)
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.suffix)
    assert (first.suffix, second.suffix) == (".0", ".1")
    records = read_records(second.read_bytes())
    starts = [e.step for e in map(event_pb2.Event.FromString, records) if e.HasField("session_log")]
    assert starts == [2], "TensorBoard drops what it has from this step on"


def read_records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: a length in 8 bytes and its checksum in 4, the record, its checksum in 4."""
    records, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        records.append(data[at + 12 : at + 12 + size])
        at += 16 + size
    return records
