"""Who is scored: every stage or the last, and a test's texts encoded anew only where the encoder has changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jasper_jax.checkpoints.checkpoint import abstract
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.evaluation.distractors import draw_distractors
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.recipe.config_evaluation import Evaluation
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.heads import project_rows
from jasper_jax.student.start import make_student, make_tokenizer, student_embedder
from jasper_jax.teachers.models import TeacherEncoder
from tests.tiny import recipe, recipe_tree, sentences
from tests.training.runs import evaluate, fill, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(recipe(tmp_path_factory.mktemp("providers")), progress=False)
    assert run_training(run)
    return run


def with_stages(run: Run, which: str) -> Run:
    evaluation = run.recipe.evaluation.model_copy(update={"stages": which})
    return Run(run.recipe.model_copy(update={"evaluation": evaluation}), progress=False)


def test_the_last_stage_alone(run: Run) -> None:
    every = evaluate(with_stages(run, "all")).rows
    last = evaluate(with_stages(run, "last")).rows
    assert {row.stage for row in every} == {None, 0, 1, 2, 3}
    assert last == [row for row in every if row.stage in (None, 3)]


def test_stages_share_vectors_only_while_the_encoder_is_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    pooled = Embedder.pooled
    monkeypatch.setattr(Embedder, "pooled", lambda self, *given, **named: (calls.append(1), pooled(self, *given))[1])
    rows = evaluate(with_stages(run, "all")).rows
    assert len(calls) == 3  # before training and stage 1 (heads alone) share theirs; stages 2 and 3

    monkeypatch.undo()
    _, view = fill(run)
    texts = run.data.texts().read("held_out", range(32))
    student = make_student(run.recipe, run.teacher_dim, run.student)
    tokenizer = make_tokenizer(student, run.student)
    for number in (1, 2, 3):
        checkpoints = run.run_folder.checkpoints()
        params = checkpoints.load(checkpoints.final(number - 1), abstract(student.shapes()))
        states = student_embedder(student, params, tokenizer).pooled([t.text for t in texts], [t.kind for t in texts])
        vectors = truncate(project_rows(params["heads"]["fc1"], states), 24)
        expected = score_agreement(vectors, view.read("held_out", np.arange(32)))
        (row,) = [r for r in rows if r.stage == number and r.head == "fc1" and r.dim == 24]
        assert row.agreement == expected


def test_baselines(run: Run) -> None:
    rows = evaluate(with_stages(run, "last")).rows
    shorter = {(row.provider, row.dim) for row in rows if row.role == "baseline"}
    dims = {row.dim for row in rows if row.role == "student"}
    teachers = [row for row in rows if row.role in ("teacher", "teachers")]
    for teacher in teachers:
        below = {dim for dim in dims if dim < teacher.dim}
        assert {(f"{teacher.provider}, SVD", dim) for dim in below} <= shorter
        first = teachers[0].dim if teacher.role == "teachers" else 0  # shorter ones are the first teacher's own cuts
        cut = {dim for provider, dim in shorter if provider == f"{teacher.provider}, cut"}
        assert cut == {dim for dim in below if dim > first}
    assert all(row.weights for row in rows)
    evaluation = run.recipe.evaluation.model_copy(update={"stages": "last", "baselines": False})
    without = evaluate(Run(run.recipe.model_copy(update={"evaluation": evaluation}), progress=False)).rows
    assert without == [row for row in rows if row.role != "baseline"]


def test_weighted_teachers_stand_beside_equal_ones(run: Run, tmp_path: Path) -> None:
    first, second = recipe_tree(tmp_path)["teachers"]
    weighted = Run(recipe(tmp_path, teachers=[first, {**second, "weight": 5.0}]), progress=False)
    assert run_training(weighted)
    rows = {row.provider: row for row in evaluate(with_stages(weighted, "last")).rows}
    same = rows["teachers concatenated, equal weights"]
    assert (same.role, same.dim) == ("baseline", 24)
    assert same.agreement.spearman < 0.999 < rows["teachers concatenated"].agreement.spearman  # with what is taught
    assert same.provider not in {row.provider for row in evaluate(with_stages(run, "last")).rows}


def test_other_wordings_of_teachers_and_student(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(12)
    (tmp_path / "labels.csv").write_text("query,passage\n" + "".join(f"{texts[i]},{texts[i + 6]}\n" for i in range(6)))
    (tmp_path / "wordings.yaml").write_text("query: ['what is ', 'x: ']\npassage: ['y: ']\n")
    tests = {
        "retrieval": [{"name": "mine", "pairs": str(tmp_path / "labels.csv"), "distractors": 9}],
        "instructions": str(tmp_path / "wordings.yaml"),
        "baselines": False,
        "stages": "last",
    }
    asked = Evaluation.model_validate(tests)
    other = Run(run.recipe.model_copy(update={"evaluation": asked}), progress=False)
    evaluation = evaluate(other)
    scored = {(row.provider, row.head, row.dim): row.retrieval["mine"] for row in evaluation.rows}
    assert {score.passages for score in scored.values()} == {6 + 9}
    rows = {(row.provider, row.head, row.dim, row.kind): row for row in evaluation.instructions}
    final = {(row.provider, row.head, row.dim) for row in evaluation.rows if row.role == "student"}
    teachers = {("teacher a", None, 16), ("teacher b", None, 8), ("teachers concatenated", None, 24)}
    assert set(rows) == {(*who, kind) for who in final | teachers for kind in ("query", "passage")}
    for (*who, _), row in rows.items():
        assert row.plain == pytest.approx(scored[tuple(who)].ndcg10.value)
        assert (row.mean, row.worst) == (np.mean(list(row.wordings.values())), min(row.wordings.values()))
        assert row.wordings[row.worst_wording] == row.worst
    # That is the prompt of this teacher for queries already.
    own = rows["teacher b", None, 8, "query"]
    assert own.wordings["what is "] == pytest.approx(own.plain)
    assert len({row.plain for row in rows.values()} | {x for row in rows.values() for x in row.wordings.values()}) > 5

    monkeypatch.setattr(TeacherEncoder, "__call__", lambda *_, **__: pytest.fail("vectors are not made twice"))
    assert evaluate(other).instructions == evaluation.instructions


def test_more_distractors_than_the_store_has(run: Run, tmp_path: Path) -> None:
    store = run.data.texts()
    passages = {row.text for shard in store.shards for row in store.read_shard(shard) if row.kind == "passage"}
    own = sorted(passages)[:3]
    others = len(passages) - 3
    drawn = draw_distractors(store, others, [f" {text.replace(' ', '  ')}" for text in own], "key")
    assert sorted([*drawn, *own]) == sorted(passages)
    assert draw_distractors(store, 5, own, "key") == drawn[:5]
    with pytest.raises(
        UserError, match=rf"key: {others + 1} passages, but .* has {others} that are not the test's own"
    ):
        draw_distractors(store, others + 1, own, "key")
