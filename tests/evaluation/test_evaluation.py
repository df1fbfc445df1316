"""What the report says: the file, the tables, the share retained."""

from __future__ import annotations

import json

import pytest

from jasper_jax.evaluation.agreement import AgreementScore
from jasper_jax.evaluation.evaluation import (
    Evaluation,
    EvaluationRow,
    better_without_training,
    final_rows,
    from_json,
    retained,
    retrieval_tests,
    to_json,
)
from jasper_jax.evaluation.retrieval import Interval, RetrievalScore
from jasper_jax.evaluation.similarity import SimilarityScore
from jasper_jax.evaluation.tables import console_table, markdown_table
from jasper_jax.runtime.console import PlainConsole
from jasper_jax.runtime.errors import UserError


def score(value: float) -> RetrievalScore:
    at = [Interval(value + d, value + d - 0.01, value + d + 0.014) for d in (0, -0.1, 0.1, -0.02)]
    return RetrievalScore(200, 900, 0, *at)


def row(provider: str, role: str, dim: int, value: float, **more) -> EvaluationRow:
    return EvaluationRow(provider=provider, role=role, dim=dim, retrieval={"nyt": score(value)}, **more)


@pytest.fixture
def evaluation() -> Evaluation:
    lee = {"lee": SimilarityScore(0.612, 1225)}
    student = {"role": "student", "agreement": AgreementScore(0.871, 0.543, 10, 500, 124750)}
    rows = [
        row("after stage 2", head="fc1", dim=256, value=0.610, stage=2, **student),
        row("after stage 2", head="fc1", dim=1024, value=0.640, stage=2, **student),
        row("after stage 1", head="fc1", dim=1024, value=0.500, stage=1, **student),
        row("student before training", "student", 1024, 0.300, head="fc1", stage=0),
        row("teacher small", "teacher", 384, 0.700),
        row("teacher large", "teacher", 768, 0.740, similarity=lee),
        row("teachers concatenated", "teachers", 1152, 0.760),
    ]
    return Evaluation(rows=rows, metadata={"recipe": "x", "commit": None, "a": [1, 2.5]})


def rendered(table, styled: bool = False) -> str:
    console = PlainConsole(width=200, force_terminal=styled, color_system="standard" if styled else None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_json_round_trip_is_stable(evaluation, tmp_path):
    path = tmp_path / "deep" / "evaluation.json"
    to_json(evaluation, path)
    first = path.read_bytes()
    again = from_json(path)
    assert again == evaluation
    reordered = Evaluation(rows=again.rows, metadata=dict(reversed(again.metadata.items())))
    to_json(reordered, path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]
    assert json.loads(first)["rows"][0]["retrieval"]["nyt"]["ndcg10"]["value"] == 0.610


def test_a_write_that_fails_leaves_the_old_file(evaluation, tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    to_json(evaluation, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        to_json(Evaluation(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "the file: Invalid JSON"),
        ('{"format": 2}', "format: Input should be 1"),
        ('{"rows": [{"provider": "x", "role": "pupil", "dim": 4}]}', r"rows\.0\.role"),
        ('{"rows": [{"provider": "x", "role": "teacher", "dim": 4, "score": 1}]}', r"rows\.0\.score: Extra"),
        ('{"rows": [{"provider": "x", "role": "teacher", "dim": 0}]}', r"rows\.0\.dim"),
    ],
)
def test_another_file_is_refused_with_the_place(content, message, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        from_json(path)
    with pytest.raises(UserError, match="cannot be read"):
        from_json(tmp_path / "none.json")


def test_retained(evaluation):
    large, small = retained(evaluation)
    assert (large.head, large.dim, large.ndcg10) == ("fc1", 1024, 0.640)
    assert large.of_teacher == pytest.approx(100 * 0.640 / 0.740)
    assert large.of_teachers == pytest.approx(100 * 0.640 / 0.760)
    assert (small.dim, small.of_teacher) == (256, pytest.approx(100 * 0.610 / 0.740))
    alone = Evaluation(rows=final_rows(evaluation))
    assert [(r.of_teacher, r.of_teachers) for r in retained(alone)] == [(None, None)] * 2
    assert retained(Evaluation(rows=evaluation.rows[3:])) == []


def test_console_table_shows_the_numbers_in_order(evaluation):
    text = rendered(console_table(evaluation))
    places = [text.index(name) for name in ("teacher small", "teacher large", "teachers concatenated")]
    places += [text.index(n) for n in ("student before training", "after stage 1", "after stage 2")]
    assert places == sorted(places)
    (line,) = [line for line in text.splitlines() if "after stage 2" in line]
    expected = "after stage 2 fc1 1024 0.640 ± 0.012 0.540 0.740 0.620 86.5% – 0.871 0.543"
    assert " ".join(line.split()) == expected
    assert "100.0%" in text
    assert "0.612" in text


def test_best_of_a_column_is_bold(evaluation):
    text = rendered(console_table(evaluation), styled=True)
    assert "\x1b[1m0.760 ± 0.012\x1b[0m" in text
    assert "\x1b[1m0.740 ± 0.012\x1b[0m" not in text
    assert markdown_table(evaluation).count("**0.760 ± 0.012**") == 1
    assert markdown_table(evaluation).count("**0.871**") == 3  # equal digits are equally good


def test_markdown_table(evaluation):
    lines = markdown_table(evaluation).splitlines()
    assert lines[0] == ("| provider | dim | nyt nDCG@10 | Recall@1 | Recall@10 | MRR@10 | Lee Spearman | agreement |")
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[3] == ("| teacher large | 768 | 0.740 ± 0.012 | 0.640 | 0.840 | 0.720 | **0.612** | – |")
    assert lines[-1] == "| after stage 2 | 256 | 0.610 ± 0.012 | 0.510 | 0.710 | 0.590 | – | **0.871** |"
    assert len({line.count("|") for line in lines}) == 1


def test_heads_are_named_where_there_are_several():
    rows = [row("after", "student", 64, 0.5, stage=3, head=head) for head in ("fc1", "fc2")]
    text = markdown_table(Evaluation(rows=rows))
    assert "| after (fc1) | 64 |" in text
    assert "| after (fc2) | 64 |" in text


def test_without_teachers_the_model_itself_is_compared_with(evaluation):
    itself = row("the model itself", "teacher", 768, 0.8, head="pooled")
    short = row("after stage 3", "student", 256, 0.6, head="fc1", stage=1)
    table = rendered(console_table(Evaluation(rows=[itself, short], metadata={})))
    assert "of the model itself" in table
    assert "75.0%" in table
    assert "of better teacher" in rendered(console_table(evaluation))


def test_names_are_not_markup():
    odd = Evaluation(rows=[row("a|b [red]c[/red] {0}", "teacher", 4, 0.5)])
    assert "a|b [red]c[/red] {0}" in rendered(console_table(odd))
    assert "| `a│b [red]c[/red] {0}` |" in markdown_table(odd)


def test_several_tests_are_shown_with_their_mean(evaluation):
    rows = [
        r.model_copy(update={"retrieval": {**r.retrieval, "wiki": score(0.2 + r.retrieval["nyt"].ndcg10.value)}})
        for r in evaluation.rows[:-1]
    ]
    both = Evaluation(rows=[*rows, evaluation.rows[-1]])
    assert retrieval_tests(both) == ["nyt", "wiki"]
    lines = markdown_table(both).splitlines()
    assert lines[0].startswith("| provider | dim | nyt nDCG@10 | wiki nDCG@10 | mean nDCG@10 |")
    assert lines[3].startswith("| teacher large | 768 | 0.740 ± 0.012 | **0.940 ± 0.012** | **0.840** |")
    assert "| **0.760 ± 0.012** | – | – |" in lines[4]  # the teachers concatenated lack one test: no mean
    assert markdown_table(both, "nyt").splitlines()[0].startswith("| provider | dim | nyt nDCG@10 | Recall@1 |")
    assert retained(both)[0].of_teacher == pytest.approx(100 * 0.740 / 0.840)
    assert retained(both, "nyt")[0].of_teacher == pytest.approx(100 * 0.640 / 0.740)
    with pytest.raises(UserError, match="no retrieval test 'reddit' in the evaluation; it has nyt, wiki"):
        retained(both, "reddit")


def test_an_evaluation_without_scores_has_tables():
    empty = Evaluation(rows=[EvaluationRow(provider="student", role="student", dim=8, stage=0)])
    assert markdown_table(empty) == "| provider | dim |\n| --- | ---: |\n| student | 8 |\n"
    assert "student" in rendered(console_table(empty))
    assert markdown_table(Evaluation()).count("\n") == 2
    rendered(console_table(Evaluation()))


def test_what_is_better_without_training() -> None:
    rows = [
        row("teacher large", "teacher", 64, 0.9, weights=200),
        row("teacher small", "teacher", 64, 0.6, weights=100),
        row("teacher small, cut", "baseline", 16, 0.45, weights=100),
        row("teacher small, SVD", "baseline", 16, 0.55, weights=100),
        row("student before training", "student", 64, 0.2, head="pooled", stage=0, weights=100),
        *(row("after stage 1", "student", d, v, head="fc1", stage=1, weights=100) for d, v in ((64, 0.7), (16, 0.5))),
        row("after stage 1", "student", 8, 0.1, head="fc1", stage=1, weights=100),
    ]
    ((student, free),) = better_without_training(Evaluation(rows=rows))
    assert (student.dim, free.provider) == (16, "teacher small, SVD")
