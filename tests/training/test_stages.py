"""Every stage at tiny size, through the real loop: its loss falls, what is frozen stays, what is trained moves."""

from __future__ import annotations

import gc
import time

import jax
import numpy as np
import pytest

from jasper_jax.checkpoints.checkpoint import Checkpoints
from jasper_jax.parameters.sharding import make_mesh
from jasper_jax.planning.memory import device_bytes
from jasper_jax.run import Run
from jasper_jax.student.start import load_student, make_student
from jasper_jax.training.lowering import lower_step
from jasper_jax.training.metrics import read_events
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.step import make_program
from jasper_jax.training.teaching import Teaching
from tests.tiny import recipe, recipe_tree
from tests.training.runs import parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("stages")
    stage = {"batch_size": 16, "learning_rate": 5e-3}
    stages = [
        {"stage": 1, "steps": 12, **stage},
        {"stage": 2, "steps": 12, "last_layers": 1, **stage},
        {"stage": 3, "steps": 24, **stage},
    ]
    heads = {"fc1": {"dim": "teachers", "nested": [12]}, "fc2": {"dim": 8}, "fc3": {"dim": 6, "target": "fc1"}}
    texts = {**recipe_tree(place)["texts"], "shard_rows": 48}  # the last shard is smaller than the others
    training = {"shapes": 1, "ridge_texts": 64, "evaluate_every": None, "loggers": ["tensorboard"]}
    run = Run(recipe(place, texts=texts, stages=stages, heads=heads, training=training), progress=False)
    assert run_training(run)
    return run


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_loss_of_a_stage_falls(trained: Run, stage: int) -> None:
    losses = [
        e["loss"]
        for e in read_events(trained.folder / "metrics.jsonl")
        if e["event"] == "step" and e["stage_index"] == stage
    ]
    assert len(losses) == trained.stages[stage].steps
    assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])


def test_tensorboard_receives_the_numbers(trained: Run) -> None:
    assert any((trained.folder / "tensorboard").glob("events.out.tfevents*"))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_loss_on_held_out_texts_falls(trained: Run, stage: int) -> None:
    losses = [
        e["loss"]
        for e in read_events(trained.folder / "metrics.jsonl")
        if e["event"] == "evaluation" and e["stage_index"] == stage
    ]
    assert losses[-1] < losses[0]


def test_stage_1_moves_the_first_head_alone(trained: Run) -> None:
    before, after = parameters(trained, -1), parameters(trained, 0)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {"heads/fc1/kernel", "heads/fc1/bias"}


def test_stage_2_moves_the_first_head_and_the_last_layer(trained: Run) -> None:
    before, after = parameters(trained, 0), parameters(trained, 1)
    for name in before:
        if name.startswith("encoder/layers/"):
            np.testing.assert_array_equal(before[name][0], after[name][0], err_msg=name)
            assert not np.array_equal(before[name][1], after[name][1]), name
        elif name.startswith("heads/fc1/"):
            assert not np.array_equal(before[name], after[name]), name
        else:
            np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_stage_3_moves_every_leaf(trained: Run) -> None:
    before, after = parameters(trained, 1), parameters(trained, 2)
    same = [name for name in before if np.array_equal(before[name], after[name])]
    assert same == []


def test_metrics_hold_every_term_of_every_head(trained: Run) -> None:
    event = read_events(trained.folder / "metrics.jsonl")[-2]
    assert set(event["terms"]) == {
        *(f"fc1/{t}" for t in ("cosine", "similarity", "relative", "total")),
        *(f"{h}/{t}" for h in ("fc2", "fc3") for t in ("similarity", "relative", "total")),
    }
    assert event["loss"] == pytest.approx(sum(event["terms"][f"{h}/total"] for h in ("fc1", "fc2", "fc3")), rel=1e-5)
    assert 0 <= event["padding_share"] < 1
    assert event["learning_rate"] > 0
    assert event["grad_norm"] > 0


def scans_backwards(jaxpr) -> list[int]:
    """Lengths of all reverse scans in a program: the backward passes over layers."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["reverse"]:
            found.append(equation.params["length"])
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += scans_backwards(inner)
    return found


@pytest.mark.parametrize(("index", "layers"), [(0, []), (1, [1]), (2, [2])])
def test_a_program_holds_no_backward_pass_and_no_optimizer_state_of_what_is_frozen(
    trained: Run, index: int, layers: list[int]
) -> None:
    """One scan backwards over the layers: over none, the last one, both."""
    student, params, _ = load_student(trained.recipe, trained.teacher_dim, trained.student)
    batch = {
        "ids": np.ones((8, 16), np.int32),
        "lengths": np.full((8, 2), 7, np.int32),
        "slots": np.arange(16, dtype=np.int32),
        "teachers": np.ones((16, trained.teacher_dim), np.float32),
    }
    stage = trained.stages[index]
    kind = make_kind(trained.recipe, stage, student)
    active = kind.active(params)
    partition = make_partition(stage.train, active, "stages")
    program = make_program(kind, partition, Teaching({"teachers": trained.teacher_dim}))
    moving, frozen = partition.split(active)
    state = program.optimizer.init(moving)
    held = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.size > 1)
    assert held == 2 * sum(leaf.size for leaf in moving.values())
    jaxpr = jax.make_jaxpr(program.step)(moving, state, frozen, {}, batch, np.int32(0))
    assert scans_backwards(jaxpr.jaxpr) == layers


def test_a_stage_is_evaluated_before_its_first_step_and_after_its_last(trained: Run) -> None:
    events = [e for e in read_events(trained.folder / "metrics.jsonl") if e["event"] == "evaluation"]
    for stage in trained.stages:
        steps = [e["step"] for e in events if e["stage_index"] == stage.index]
        assert (steps[0], steps[-1]) == (0, stage.steps)


def test_a_stage_that_makes_the_student_worse_says_so(tmp_path, capfd) -> None:
    stages = [{"stage": 1, "steps": 3, "batch_size": 16, "learning_rate": 3.0}]
    heads = {"fc1": {"dim": "teachers", "init": "ridge"}}
    run = Run(recipe(tmp_path, stages=stages, heads=heads), progress=False)
    assert run_training(run)
    said = capfd.readouterr().err
    assert "stage-1: the loss on held-out data is higher after this stage than before it; lower stages[0]" in said
    losses = [e["loss"] for e in read_events(run.folder / "metrics.jsonl") if e["event"] == "evaluation"]
    assert losses[-1] > losses[0]


def test_a_profile_of_some_steps(tmp_path) -> None:
    stages = [{"stage": 1, "steps": 8, "batch_size": 16, "learning_rate": 1e-3}]
    run = Run(recipe(tmp_path, stages=stages, training={"profile_steps": 2}), progress=False)
    assert run_training(run)
    for name in ("*.xplane.pb", "perfetto_trace.json.gz"):
        assert len(list((run.folder / "profile" / "stage-1").rglob(name))) == 1


def test_a_stage_holds_its_parameters_once(tmp_path, monkeypatch) -> None:
    """While the last layer is trained: all parameters, the optimizer's two moments of what is trained, one batch. At
    its end: the parameters alone."""
    stage = {"batch_size": 16, "learning_rate": 1e-3, "steps": 4}
    held: list[int] = []

    def measure(step: int) -> bool:
        gc.collect()
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return False

    at_the_end: list[int] = []
    save_final = Checkpoints.save_final

    def measure_and_save(self, *arguments) -> None:
        gc.collect()
        at_the_end.append(sum(x.nbytes for x in jax.live_arrays()))
        save_final(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save_final", measure_and_save)
    run = Run(
        recipe(tmp_path, stages=[{"stage": 2, "last_layers": 1, **stage}], training={"save_every": 100}), progress=False
    )
    gc.collect()
    others = sum(x.nbytes for x in jax.live_arrays())
    assert run_training(run, measure)
    leaves = parameters(run, 0)
    every = sum(x.nbytes for x in leaves.values())
    last_layer = sum(x[-1:].nbytes for name, x in leaves.items() if name.startswith("encoder/layers/"))
    moments = 2 * (last_layer + sum(x.nbytes for name, x in leaves.items() if name.startswith("heads/fc1/")))
    assert max(held) - others <= every + moments + 4096  # one batch of 16 texts
    assert at_the_end[0] - others <= every + 4096


def test_a_stage_holds_what_the_plan_says_before_and_after_a_save(tmp_path) -> None:
    """Bytes of all arrays before a save, and when it is long over. (While it runs a CPU holds copies; an accelerator
    does not, since Orbax returns once the values are in host memory.)"""
    stage = {"stage": 3, "steps": 23, "batch_size": 16, "learning_rate": 1e-3}
    chosen = recipe(tmp_path, stages=[stage], training={"save_every": 11, "shapes": 1, "ridge_texts": 64})
    run = Run(chosen, progress=False)
    student = make_student(run.recipe, run.teacher_dim, run.student)
    step = lower_step(run.recipe, run.vectors, run.stages[0], student, make_mesh((1, 1, 1), jax.devices()[:1]), "cpu")
    planned = device_bytes([step.trained, step.frozen, step.optimizer])
    held: list[int] = []

    def measure(_: int) -> bool:
        first, until = run.folder / "checkpoints" / "00-stage-3" / "step-000011.sha256.json", time.monotonic() + 60
        while len(held) == 21 and not first.is_file() and time.monotonic() < until:
            time.sleep(0.05)  # on a machine with other work the first save may take longer than ten steps
        gc.collect()
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return False

    gc.collect()
    others = sum(x.nbytes for x in jax.live_arrays())
    assert run_training(run, measure)
    batch = 16 * (24 + 2 * 128) * 4  # teachers, ids and lengths of a batch, at most
    for step_number in (11, 22):  # just before the first save, and eleven steps later
        more = held[step_number - 1] - others - planned
        assert -0.05 * planned <= more <= 0.05 * planned + batch, step_number
    assert planned > 4 * batch  # else it would say nothing
