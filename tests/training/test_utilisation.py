"""What a run says of its use of the devices, and what watches it."""

from __future__ import annotations

import io
import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jasper_jax.batches.loading import LoadedBatch
from jasper_jax.planning.device_peak import peak_flops
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.training.hooks import Moment, Profile
from jasper_jax.training.metrics import read_events
from jasper_jax.training.model_flops import ImageStepFlops, TextStepFlops
from jasper_jax.training.utilisation import Goodput, Utilisation, with_wait
from jasper_jax.training.watchdog import Watchdog, watchdog_seconds
from tests.tiny import recipe
from tests.training.runs import run_training


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)


def test_model_operations_by_hand() -> None:
    config = SimpleNamespace(hidden_size=8, num_heads=2)
    student = SimpleNamespace(encoder=SimpleNamespace(config=config))
    trained = {
        "encoder/layers[2:]/mlp/kernel": leaf(1, 8, 16),
        "heads/fc1/kernel": leaf(8, 4),
        "heads/fc1/bias": leaf(4),
    }
    frozen = {"encoder/layers[:2]/mlp/kernel": leaf(2, 8, 16), "encoder/embeddings/word/embedding": leaf(50, 8)}
    flops = TextStepFlops(student, trained, frozen)  # pyright: ignore[reportArgumentType]
    assert flops(0, 1, 0) == 3 * 2 * 128 + 2 * 256  # a trained layer and two frozen ones
    assert flops(0, 0, 1) == 4 * 8 * (3 * 1 + 2)
    assert flops(1, 0, 0) == 3 * 2 * 32
    head_alone = TextStepFlops(student, {"heads/fc1/kernel": leaf(8, 4)}, frozen)  # pyright: ignore[reportArgumentType]
    assert head_alone(1, 0, 0) == 2 * 2 * 32


def test_operations_on_images_by_hand() -> None:
    """Four patches and a class token; a frozen text encoder through which the gradient passes; three words an image."""
    vision = SimpleNamespace(hidden_size=8, num_tokens=5, side=2)
    model = SimpleNamespace(encoder=SimpleNamespace(config=vision), alone=(1, 2, 3), projector="linear", tokens=3)
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=8, num_heads=2))
    student: Any = SimpleNamespace(encoder=encoder, vision_model=model)
    trained = {
        "vision/layers/mlp/kernel": leaf(2, 8, 16),
        "vision/patches/kernel": leaf(2, 2, 3, 8),
        "projector/kernel": leaf(8, 8),
    }
    frozen = {"encoder/layers/mlp/kernel": leaf(1, 8, 16), "heads/fc1/kernel": leaf(8, 4)}
    parts = {
        "vision": 3 * 5 * (2 * 256 + 4 * 5 * 8 * 2),
        "patches": 2 * 4 * 2 * 96,
        "projector": 3 * 3 * 2 * 64,
        "text": 2 * 3 * (2 * 128 + 4 * 3 * 8),
        "heads": (2 + 1) * 2 * 32,
    }
    assert ImageStepFlops(student, trained, frozen)(2, 0, 0) == 2 * sum(parts.values())
    alone = {"projector/kernel": trained["projector/kernel"]}
    others = {**frozen, **{name: x for name, x in trained.items() if name not in alone}}
    one = parts["vision"] // 3 + parts["patches"] // 2 + parts["projector"] * 2 // 3 + parts["text"] + parts["heads"]
    assert ImageStepFlops(student, alone, others)(1, 0, 0) == one


@pytest.mark.parametrize(
    ("kind", "tera"),
    [("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA L4", 121), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU7x", 1153.5)],
)
def test_the_peak_of_known_devices(kind: str, tera: float) -> None:
    assert peak_flops(SimpleNamespace(device_kind=kind)) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40S", "NVIDIA H100 NVL"])
def test_no_peak_of_others(kind: str) -> None:
    assert peak_flops(SimpleNamespace(device_kind=kind)) is None


def test_mfu_needs_a_known_device() -> None:
    batch = LoadedBatch(0, {}, np.arange(2), tokens=10, slots=20, pairs=50)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    assert Utilisation(lambda *_: 1e9, mesh).mfu(batch, 1.0) is None
    device = SimpleNamespace(device_kind="NVIDIA L4")
    mesh = SimpleNamespace(devices=np.array([device, device]), size=2)
    known = Utilisation(lambda texts, tokens, pairs: texts * tokens * pairs * 1e12 * 0.121, mesh)  # pyright: ignore
    assert known.mfu(batch, 2.0) == pytest.approx(1000 * 0.121 / (2 * 2 * 121))


def test_waiting_for_batches() -> None:
    def slow():
        yield "first"
        time.sleep(0.05)
        yield "second"

    (first, _), (second, waited) = with_wait(slow())
    assert (first, second) == ("first", "second")
    assert waited >= 0.05


def test_goodput_goes_on_after_a_resume() -> None:
    now = time.time()
    events = [
        {"event": "start", "time": now - 100},
        {"event": "step", "seconds": 20.0},
        {"event": "start", "time": now - 50},
        {"event": "step", "seconds": 30.0},
        {"event": "evaluation", "loss": 1.0},
    ]
    goodput = Goodput.of(events)
    goodput.add(10.0)
    assert goodput.share() == pytest.approx(0.6, abs=0.01)


def test_the_metrics_of_steps(tmp_path) -> None:
    stages = [{"stage": 1, "steps": 3, "batch_size": 16, "learning_rate": 1e-3}]
    run = Run(recipe(tmp_path, stages=stages, training={"profile_steps": 2}), progress=False)
    assert run_training(run)
    events = read_events(run.folder / "metrics.jsonl")
    assert [e["event"] for e in events[:2]] == ["start", "evaluation"]
    steps = [e for e in events if e["event"] == "step"]
    assert len(steps) == 3
    for event in steps:
        assert event["seconds"] > 0
        assert event["input_wait"] >= 0
        assert 0 < event["goodput"] <= 1
        assert event["mfu"] is event["device_bytes"] is None  # on a CPU
    assert sum(e["seconds"] for e in steps) / steps[-1]["goodput"] >= sum(e["seconds"] for e in steps)


def test_a_stage_too_short_for_its_profile_says_so(tmp_path, capfd) -> None:
    profile = Profile(2, first_step=10, folder=tmp_path)
    assert not profile.due(Moment(12, 12))
    last = Moment(13, 13, last=True)
    assert profile.due(last)
    profile(last)
    assert "No profile: training.profile_steps begins after 4 steps of a command" in capfd.readouterr().err
    assert not Profile(0, first_step=10, folder=tmp_path).due(last)


def test_processes_do_not_share_the_folder_of_a_profile(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("jasper_jax.runtime.processes.count", lambda: 2)
    for index in range(2):
        monkeypatch.setattr("jasper_jax.runtime.processes.index", lambda index=index: index)
        profile = Profile(2, first_step=0, folder=tmp_path)
        profile(Moment(4, 4))
        profile.close()
    traces = sorted(path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("perfetto_trace.json.gz"))
    assert traces == ["process-0", "process-1"]


def test_the_watchdog_says_where_a_process_hangs(monkeypatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)

    def waits_for_the_others() -> None:
        deadline = time.monotonic() + 20
        while written.getvalue().count("no step for") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)

    ended = threading.Event()

    def writes_a_checkpoint() -> None:
        ended.wait(20)

    writer = threading.Thread(target=writes_a_checkpoint, name="checkpoints")
    writer.start()
    with Watchdog("stage-2", 3, seconds=0.05) as watchdog:
        watchdog.beat(7)
        waits_for_the_others()
    ended.set()
    writer.join()
    text = written.getvalue()
    first = text[: text.index("process 0: no step for", 1)]
    assert "thread checkpoints:\n" in first
    assert first.index("in writes_a_checkpoint") < first.index("thread of training:") < first.index("in waits_for_")
    assert "in _watch" not in first
    assert "process 0: no step for" in text
    assert "stage-2, 7 steps done" in text
    assert "in waits_for_the_others" in text


def test_a_watchdog_that_is_off_starts_no_thread(monkeypatch) -> None:
    monkeypatch.setenv("JASPER_WATCHDOG_MINUTES", "0")
    with Watchdog("stage-1", 0) as watchdog:
        assert not watchdog._thread.is_alive()
    monkeypatch.setenv("JASPER_WATCHDOG_MINUTES", "soon")
    with pytest.raises(UserError, match="JASPER_WATCHDOG_MINUTES: expected minutes, .* got 'soon'"):
        watchdog_seconds()
