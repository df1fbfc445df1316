"""Retrieval tests from files of labels: scores as gains, judged passages that answer nothing, keys that go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jasper_jax.assets.corpora import text_id
from jasper_jax.evaluation.text_tests import TextTests
from jasper_jax.recipe.config_evaluation import Evaluation
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.runtime.errors import UserError

HEADER = "query,passage,score\n"


def labels_of(file: Path, rows: str) -> TextTests:
    file.write_text(HEADER + rows)
    tree = {"agreement": False, "retrieval": [{"name": "mine", "pairs": {"csv": str(file), "score": "score"}}]}
    return TextTests(Evaluation.model_validate(tree), None)


def test_scores_are_gains_and_a_passage_judged_irrelevant_stays_a_candidate(tmp_path: Path) -> None:
    test = labels_of(tmp_path / "labels.csv", "a,p,3\na,q,0\nb,r,0.4\na,s,1\na,p,2\nc,p,0\n").retrieval["mine"]
    assert list(test.passages.values()) == ["p", "r", "s", "q"]
    assert list(test.queries.values()) == ["a", "b"]
    assert test.relevant == {text_id("a"): {text_id("p"): 3, text_id("s"): 1}, text_id("b"): {text_id("r"): 1}}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("a,p,0\n", "evaluation.retrieval.mine.pairs: 1 pairs, none with a score above 0"),
        ("a,p,2.5\n", "query 'a': score 2.5; expected 0, a share up to 1, or a whole number"),
        ("a,p,good\n", "column 'score' is 'good'; expected a number"),
        ("a,p,100001\n", "query 'a': score 100001; expected a gain in nDCG of at most 100,000"),
        ("a,p,1e300\n", r"query 'a': score 1e\+300; expected a gain in nDCG of at most 100,000"),
    ],
)
def test_scores_that_are_no_gains(rows: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        labels_of(tmp_path / "labels.csv", rows)


def test_the_name_of_a_file_says_what_it_is() -> None:
    tree = {"retrieval": [{"name": "r", "pairs": "a.tsv"}], "similarity": [{"name": "s", "pairs": "b.jsonl.gz"}]}
    asked = Evaluation.model_validate(tree)
    (judged,) = asked.similarity
    assert asked.retrieval[0].pairs is not None
    assert (asked.retrieval[0].pairs.csv, asked.retrieval[0].pairs.score) == ("a.tsv", None)
    assert not isinstance(judged, str)
    assert (judged.pairs.jsonl, judged.pairs.score) == ("b.jsonl.gz", "score")
    assert Evaluation.model_validate(asked.model_dump(mode="json")) == asked


MINE = {"name": "mine", "pairs": "labels.csv"}


@pytest.mark.parametrize(
    ("evaluation", "changes", "problem"),
    [
        ({"retrieval": [{"name": "x", "beir": "y", "distractors": 3}]}, {}, "distractors are for pairs"),
        ({"retrieval": [{"name": "x", "pairs": "y.txt"}]}, {}, "y.txt: expected a name that ends in .jsonl"),
        ({"classification": [{"name": "x", "file": "y"}]}, {}, "y: expected a name that ends in .jsonl"),
        ({"classification": [{"name": "x", "file": "y.csv"}] * 2}, {}, r"classification\[1\].name: another test"),
        ({"instructions": True}, {}, "evaluation.instructions: needs a test in evaluation.retrieval"),
        (
            {"retrieval": [{**MINE, "distractors": 101}]},
            {"texts": {"sources": [{"text": "t.txt"}], "count": 90, "held_out": 10}},
            "mine.distractors: 101 passages, but the text store has at most 100 texts",
        ),
    ],
)
def test_keys_that_do_not_go_together(evaluation: dict[str, Any], changes: dict[str, Any], problem: str) -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "configs" / "quickstart.yaml").read_text("utf-8"))
    with pytest.raises(UserError, match=problem):
        parse_recipe({**tree, "evaluation": evaluation, **changes}, "quickstart")
