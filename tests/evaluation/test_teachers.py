"""What evaluation asks of models that embedding and training took: a teacher in PyTorch alone, several poolings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jasper_jax.encoders.registry import FAMILIES
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows
from jasper_jax.run import Run
from tests.tiny import recipe, sentences, write_model
from tests.training.runs import evaluate, run_training

pytestmark = pytest.mark.usefixtures("quick_programs")


def write_distilbert(folder: Path) -> Path:
    """A sentence-transformers folder of a family that no encoder here implements."""
    from transformers import DistilBertConfig, DistilBertModel

    assert "distilbert" not in FAMILIES
    vocab = json.loads((write_model(folder) / "config.json").read_text())["vocab_size"]
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64}
    DistilBertModel(DistilBertConfig(vocab_size=vocab, **sizes, initializer_range=0.3)).save_pretrained(folder)
    return folder


def write_retrieval(folder: Path) -> Path:
    """A BEIR folder: twelve passages, the first four of which answer a query each."""
    (folder / "qrels").mkdir(parents=True)
    passages = {f"p{i}": text for i, text in enumerate(sentences(12, seed=7))}
    queries = {f"q{i}": text for i, text in enumerate(sentences(4, seed=8))}
    for name, texts in (("corpus", passages), ("queries", queries)):
        lines = [json.dumps({"_id": number, "text": text}) for number, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{i}\tp{i}\t1\n" for i in range(4)))
    return folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    place = tmp_path_factory.mktemp("teachers")
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (write_model(place / "joined") / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    chosen = recipe(
        place,
        teachers=[{"name": "t", "model": str(write_distilbert(place / "distilbert")), "backend": "torch", "dim": 16}],
        student={"model": str(place / "joined")},
        heads={"fc1": {"dim": "teachers", "nested": [4], "init": "ridge"}},
        stages=[{"stage": 1, "steps": 1, "batch_size": 16, "learning_rate": 1e-2}],
        evaluation={
            "retrieval": [{"name": "small", "beir": str(write_retrieval(place / "beir"))}],
            "precisions": True,
        },
    )
    run = Run(chosen, progress=False)
    assert run_training(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jasper_jax.evaluation.precisions.LEAST_TEXTS", 30)
        return evaluate(run)


@pytest.fixture(scope="module")
def rows(evaluation: Evaluation) -> list[EvaluationRow]:
    return evaluation.rows


def test_vectors_in_fewer_bits_are_those_of_the_final_student(evaluation: Evaluation) -> None:
    found = [(row.dim, row.precision, row.bytes) for row in evaluation.precisions]
    assert [size for dim, _, size in found if dim == 4] == [16, 4, 1, 1, 1]
    assert list(dict.fromkeys(dim for dim, _, _ in found)) == [16, 4]
    for student in final_rows(evaluation):
        (row,) = [r for r in evaluation.precisions if (r.dim, r.precision) == (student.dim, "float32")]
        assert row.retrieval == student.retrieval


def test_a_teacher_whose_family_has_no_encoder_here_is_scored_by_its_own(rows: list[EvaluationRow]) -> None:
    (teacher,) = [row for row in rows if row.role == "teacher"]
    assert (teacher.provider, teacher.dim) == ("teacher t", 16)
    assert teacher.retrieval["small"].queries == 4
    assert teacher.agreement is not None
    assert teacher.agreement.spearman == pytest.approx(1.0)


def test_the_pooled_vector_is_as_wide_as_all_its_poolings(rows: list[EvaluationRow]) -> None:
    (before,) = [row for row in rows if row.head == "pooled"]
    assert (before.provider, before.dim) == ("student before training", 32)


def test_a_teacher_is_also_scored_in_the_student_s_dimensions_without_training(rows: list[EvaluationRow]) -> None:
    shorter = [(row.provider, row.dim) for row in rows if row.role == "baseline"]
    assert shorter == [("teacher t, cut", 4), ("teacher t, SVD", 4)]


def test_the_final_student_is_scored_as_its_teacher_s_query_encoder(rows: list[EvaluationRow]) -> None:
    (row,) = [row for row in rows if row.role == "asymmetric"]
    assert (row.provider, row.documents, row.dim) == ("queries, documents: teacher t", "teacher t", 16)
    assert (row.head, row.stage, row.retrieval["small"].queries) == ("fc1", 1, 4)
