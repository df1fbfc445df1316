"""A student's queries among a teacher's documents: which space a head has, and what its rows score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jasper_jax.evaluation.asymmetric import asymmetric_rows, share_kept
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow, final_rows, from_json, to_json
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.tables import console_table
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.recipe.config import Recipe
from jasper_jax.student.spaces import Space, teacher_spaces
from jasper_jax.teachers.vectors import concatenate, normalize_rows
from tests.evaluation.test_teachers import write_retrieval
from tests.tiny import recipe

DIMS = {"a": 6, "b": 4}
WHOLE = Space("fc1", ("a", "b"), 0, 10)
A, B = Space("fc1", ("a",), 0, 6), Space("fc1", ("b",), 6, 10)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    place = tmp_path_factory.mktemp("asymmetric")
    tests = [{"name": "small", "beir": str(write_retrieval(place / "beir"))}]
    return recipe(place, evaluation={"retrieval": tests, "agreement": False})


def test_a_head_that_copies_the_teachers_is_in_the_space_of_all_and_of_each(small: Recipe) -> None:
    assert teacher_spaces(small, small.heads, DIMS) == [WHOLE, A, B]
    assert teacher_spaces(small, small.heads, {"a": 6}) == [Space("fc1", ("a",), 0, 6)]
    assert teacher_spaces(small, ["fc2", "fc3"], DIMS) == []
    assert teacher_spaces(small, small.heads, {}) == []
    no_cosine = {"fc1": small.heads["fc1"].model_copy(update={"cosine": False})}
    assert teacher_spaces(small.model_copy(update={"heads": no_cosine}), ["fc1"], DIMS) == []


def test_a_part_of_the_concatenated_vector_is_the_teacher_s_own() -> None:
    rng = np.random.default_rng(0)
    own = {name: normalize_rows(rng.normal(size=(5, dim))) for name, dim in DIMS.items()}
    joined = concatenate(list(own.values()), [1, 1])
    for space in (A, B):
        np.testing.assert_allclose(normalize_rows(space.of(joined)), own[space.teachers[0]], atol=1e-6)
    head = {"kernel": rng.normal(size=(7, 10)), "bias": rng.normal(size=10)}
    pooled = rng.normal(size=(3, 7))
    part = B.of_head(head)
    np.testing.assert_allclose(
        pooled @ part["kernel"] + part["bias"], B.of(pooled @ head["kernel"] + head["bias"]), rtol=1e-12
    )


@pytest.fixture(scope="module")
def rows(small: Recipe) -> tuple[list[EvaluationRow], dict[str, np.ndarray], dict]:
    """Rows of a student whose queries are those of both teachers with some noise, and whose passages are useless."""
    tests, rng = TextTests(small.evaluation, None), np.random.default_rng(0)
    count = {name: len(texts.texts) for name, texts in tests.lists.items()}
    own = {name: {part: rng.normal(size=(n, dim)) for part, n in count.items()} for name, dim in DIMS.items()}
    for vectors in own.values():
        vectors["small/queries"] = vectors["small/passages"][:4] + 0.1 * rng.normal(size=(4, 1))
    joined = {part: concatenate([own["a"][part], own["b"][part]], [1, 1]) for part in count}
    documents = {("a",): ("teacher a", own["a"]), ("a", "b"): ("teachers concatenated", joined)}
    student = {part: x if part == "small/queries" else rng.normal(size=x.shape) for part, x in joined.items()}
    return list(asymmetric_rows(student, [WHOLE, A, B], documents, tests, head="fc1", stage=3)), student, documents


def test_queries_are_the_student_s_and_documents_the_teacher_s(rows, small: Recipe) -> None:
    found, student, documents = rows
    assert [(row.documents, row.dim) for row in found] == [("teachers concatenated", 10), ("teacher a", 6)], (
        "teacher b has no vectors of these texts"
    )
    test = TextTests(small.evaluation, None).retrieval["small"]
    for row, space in zip(found, (WHOLE, A)):
        theirs = documents[space.teachers][1]["small/passages"]
        expected = score_retrieval(space.of(student["small/queries"]), theirs, test)
        assert row.retrieval == {"small": expected}
        assert expected.ndcg10.value > 0.9 > score_retrieval(*map(space.of, student.values()), test).ndcg10.value
        assert (row.similarity, row.agreement, row.pairs) == ({}, None, None)


def test_they_are_shown_beside_the_teacher_s_own_and_are_no_scores_of_the_student(rows, tmp_path: Path) -> None:
    from rich.console import Console

    found = rows[0]
    own = [found[1].model_copy(update={"provider": "teacher a", "role": "teacher", "documents": None, "stage": None})]
    evaluation = Evaluation(rows=[*own, *found])
    (line,) = share_kept(evaluation)
    assert "the documents of teacher a (6 dimensions)" in line
    assert "100.0% of its own" in line
    assert final_rows(evaluation) == []
    console = Console(width=160, record=True)
    console.print(console_table(evaluation))
    assert "queries, documents: teacher a" in console.export_text()
    to_json(evaluation, tmp_path / "evaluation.json")
    assert from_json(tmp_path / "evaluation.json") == evaluation


def test_without_a_test_of_retrieval_there_is_no_row(tmp_path: Path) -> None:
    tests = TextTests(recipe(tmp_path, evaluation={"agreement": False}).evaluation, None)
    assert list(asymmetric_rows({}, [A], {("a",): ("teacher a", {})}, tests)) == []
