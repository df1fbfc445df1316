"""Every encoder family as a student: the whole recipe at tiny size, the export in PyTorch, and back here."""

from __future__ import annotations

import numpy as np
import pytest

from jasper_jax.embedder import Embedder
from jasper_jax.export import check, reload_in_torch
from jasper_jax.run import Run
from jasper_jax.training.metrics import read_events
from tests.families import CASES
from tests.tiny import recipe, sentences, write_model
from tests.training.runs import export, parameters, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")

ELSEWHERE = ("bert", "mpnet", "xlm-roberta", "qwen2-causal")
"""Students of the other training and export tests, and cases whose code is another's."""


ALWAYS = ("modernbert", "qwen3")
"""One encoder and one decoder at every push; the others in the long campaign."""


def cases():
    for case in CASES:
        if case not in ELSEWHERE:
            yield pytest.param(case, marks=() if case in ALWAYS else pytest.mark.full)


@pytest.fixture(scope="module", params=cases())
def trained(request, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("family")
    write_model(place / "student", model_type=request.param, hidden=16, layers=3, seed=3)
    stage = {"batch_size": 16, "learning_rate": 4e-3, "warmup_steps": 2}
    stages = [
        {"stage": 1, "steps": 8, **stage},
        {"stage": 2, "steps": 8, "last_layers": 1, **stage},
        {"stage": 3, "steps": 12, **stage},
    ]
    heads = {"fc1": {"dim": "teachers"}, "fc2": {"dim": 8}}
    settings = {"stages": stages, "heads": heads, "evaluation": {"agreement": False}, "name": request.param}
    run = Run(recipe(place, **settings), progress=False)
    assert run_training(run)
    return run


def test_the_loss_of_each_stage_falls(trained: Run) -> None:
    events = read_events(trained.folder / "metrics.jsonl")
    for index in range(3):
        held_out = [e["loss"] for e in events if e["event"] == "evaluation" and e["stage_index"] == index]
        assert held_out[-1] < held_out[0], index


def test_what_is_frozen_stays_to_the_bit_and_what_is_trained_moves(trained: Run) -> None:
    after = [parameters(trained, stage) for stage in (-1, 0, 1, 2)]
    for stage in range(3):
        for name, old in after[stage].items():
            new = after[stage + 1][name]
            if stage < 2 and name.startswith("encoder/layers/"):
                cut = 1 if stage else 2  # stage 2 trains the upper one of the two layers that were kept
                np.testing.assert_array_equal(old[:cut], new[:cut], err_msg=name)
                assert stage == 0 or not np.array_equal(old[1], new[1]), name
            elif stage < 2 and not name.startswith("heads/fc1/"):
                np.testing.assert_array_equal(old, new, err_msg=name)
            else:
                assert not np.array_equal(old, new), (stage, name)


def test_the_export_is_the_student_in_pytorch_and_the_next_teacher(trained: Run, tmp_path, monkeypatch) -> None:
    """``export`` itself compares every dimension with sentence-transformers' vectors, and refuses a difference.

    Here in this process, where torch is imported once for all families."""
    monkeypatch.setattr(check, "run_in_torch", lambda module, job, scratch: reload_in_torch.main(str(job)) or "")
    folder, verdict = export(trained, tmp_path / "export")
    assert "sentence-transformers" in verdict
    vectors = Embedder.load(folder).encode(sentences(8), dim=8)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    if trained.recipe.name == "modernbert":  # once: a teacher is read as any folder is
        check_next_teacher(folder, tmp_path / "next")


def check_next_teacher(folder, place) -> None:
    place.mkdir()
    teachers = [{"name": "student", "model": str(folder), "dim": 8, "dtype": "float32"}]
    heads = {"fc1": {"dim": "teachers", "init": "ridge"}}
    stages = [{"stage": 1, "steps": 2, "batch_size": 16, "learning_rate": 1e-3}]
    again = Run(recipe(place, teachers=teachers, heads=heads, stages=stages), progress=False)
    assert run_training(again)
    texts = again.data.texts()
    view = again.vectors.view(texts)
    drawn = view.stores[0].rows("train")[:4]
    rows, stored = texts.read("train", drawn), view.read("train", drawn)
    vectors = Embedder.load(folder).encode([r.text for r in rows], [r.kind for r in rows], dim=8)
    np.testing.assert_allclose(vectors, stored, atol=1e-5)
