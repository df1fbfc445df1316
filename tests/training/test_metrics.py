"""The file of metrics, and its sinks: one of each kind per run folder, whichever process or command writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jasper_jax.runtime.errors import UserError
from jasper_jax.training.loggers import make_sinks
from jasper_jax.training.metrics import Metrics, read_events
from tests.training.processes import run_together

WANDB = """
from pathlib import Path

def init(project, name, dir, id, resume, settings):
    assert resume == "allow"
    assert (settings["console"], settings["disable_git"], settings["x_disable_meta"]) == ("off", True, True)
    with (Path(dir) / "inits").open("a") as file:
        file.write(f"{name} {id}\\n")
    return Run(Path(dir))

class Run:
    def __init__(self, folder):
        self.folder = folder

    def log(self, values, step):
        with (self.folder / "logged").open("a") as file:
            file.write(f"{step} {sorted(values)}\\n")

    def finish(self):
        (self.folder / "finished").touch()
"""
"""What is used of the wandb package."""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to put on the path, which holds a package called wandb."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("wandb", None)


def inits(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "inits").read_text().splitlines()]


def test_every_run_folder_has_a_run_of_its_own_and_continues_it(wandb: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in (*folders, folders[0]):
        folder.mkdir(exist_ok=True)
        (sink,) = make_sinks(["wandb"], folder, "quickstart")
        sink.close()
    (first, again), (other,) = inits(folders[0]), inits(folders[1])
    assert first == again
    assert first[0] == other[0] == "quickstart"
    assert first[1] != other[1]
    assert first[1] == (folders[0] / "wandb_id").read_text()


def test_numbers_of_an_event_go_to_the_sinks(wandb: Path, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", make_sinks(["wandb"], tmp_path, "tiny"), keep_before=(0, 0))
    metrics.write({"event": "step", "global_step": 3, "loss": 1.5, "stage": "one", "terms": {"fc1/cosine": 2}})
    metrics.close()
    expected = "3 ['step/fc1/cosine', 'step/global_step', 'step/loss']\n"
    assert (tmp_path / "logged").read_text() == expected
    assert (tmp_path / "finished").exists()


def test_metrics_are_cut_back_to_the_checkpoint_and_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"event": "step", "stage_index": s, "step": k} for s in (0, 1) for k in (1, 2, 3)]
    lines.insert(3, {"event": "evaluation", "stage_index": 1, "step": 0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    Metrics(path, [], keep_before=(1, 2)).close()
    assert [(e["stage_index"], e["step"]) for e in read_events(path)] == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 2),
    ]
    Metrics(path, [], keep_before=(1, 0)).close()
    assert [(e["stage_index"], e["step"]) for e in read_events(path)] == [(0, 1), (0, 2), (0, 3)]
    path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2: not a JSON line"):
        read_events(path)


def test_a_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, package in (
        ("tensorboard", "tensorboardX"),
        ("wandb", "wandb"),
        ("mlflow", "mlflow"),
        ("trackio", "trackio"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"training.loggers: {name} .*pip install 'jasper-jax\[{name}\]'"):
            make_sinks([name], tmp_path, "tiny")


PROGRAM = """
import json
import sys
from pathlib import Path
from jasper_jax.runtime import joining, processes
from jasper_jax.training.loggers import make_sinks
from jasper_jax.training.metrics import Metrics
joining.connect()
folder = Path(sys.argv[1])
metrics = Metrics(folder / "metrics.jsonl", make_sinks(["tensorboard", "wandb"], folder, "tiny"), keep_before=(0, 0))
metrics.write({"event": "step", "global_step": 1, "loss": 1.0})
metrics.close()
processes.barrier("end")
"""


def test_of_several_processes_the_first_writes(wandb: Path, tmp_path: Path) -> None:
    path = ":".join([str(wandb), *sys.path[1:]])
    outputs = run_together(PROGRAM, str(tmp_path), PYTHONPATH=path)
    assert [code for code, _ in outputs] == [0, 0], outputs
    assert len(inits(tmp_path)) == 1
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents*"))) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_damaged_metrics_end_all_processes(wandb: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"event": "step"}\n')
    for code, output in run_together(PROGRAM, str(tmp_path), PYTHONPATH=":".join([str(wandb), *sys.path[1:]])):
        assert code == 1
        assert "metrics.jsonl:1: not a JSON line" in output
