"""Model folders scored without a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from jasper_jax.assets.corpora import as_test
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.classification import ClassificationTest, score_classification
from jasper_jax.evaluation.evaluation import from_json, to_json
from jasper_jax.evaluation.folders import asked_of, evaluate_folders, refuse_dims
from jasper_jax.evaluation.instructions import instruction_table
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.evaluation.tables import console_table
from jasper_jax.runtime.errors import UserError
from tests.tiny import sentences, write_model

pytestmark = pytest.mark.usefixtures("quick_programs")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    texts = sentences(12)
    rows = [f"{texts[i]},{texts[i + 6]},{i * 7 % 5 + 0.5}" for i in range(6)]
    (place / "labels.csv").write_text("\n".join(["query,passage,score", *rows]) + "\n")
    lines = [{"question": texts[i], "answer": texts[i + 6]} for i in range(6)]
    (place / "faq.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("models")
    return [str(write_model(place / name, seed=seed)) for seed, name in enumerate(("one", "other"))]


def test_models_are_scored_side_by_side(files: Path, models: list[str], tmp_path: Path) -> None:
    labels = str(files / "labels.csv")
    asked = asked_of([labels, f"{{jsonl: {files / 'faq.jsonl'}, query: question, passage: answer}}"], [], [labels])
    evaluation = evaluate_folders(models, asked, ())
    assert [row.provider for row in evaluation.rows] == models
    for row in evaluation.rows:
        assert row.retrieval["labels"] == row.retrieval["pairs"]  # the same pairs, by other names
        assert (row.retrieval["labels"].queries, row.retrieval["labels"].passages) == (6, 6)
    assert console_table(evaluation).row_count == 2
    to_json(evaluation, tmp_path / "scores.json")
    assert from_json(tmp_path / "scores.json") == evaluation


def test_similarity_is_the_rank_correlation_of_cosines_with_judgements(files: Path, models: list[str]) -> None:
    (row,) = evaluate_folders(models[:1], asked_of([], [], [str(files / "labels.csv")]), ()).rows
    embedder, texts = Embedder.load(models[0]), sentences(12)
    one, other = (embedder.encode(part, kind="passage") for part in (texts[:6], texts[6:]))
    cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    expected = spearmanr(cosines, [i * 7 % 5 + 0.5 for i in range(6)]).statistic
    assert row.similarity["labels"].spearman == pytest.approx(expected)
    assert row.similarity["labels"].pairs == 6


def test_labels_are_scored_by_a_linear_probe_and_queries_under_other_wordings(
    files: Path, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = sentences(40)
    (files / "kinds.csv").write_text("text,label\n" + "".join(f"{t},{i % 2}\n" for i, t in enumerate(texts)))
    (files / "wordings.yaml").write_text("query: ['x: ', 'what is ']\n")
    encoded: list[str] = []
    pooled = Embedder.pooled
    monkeypatch.setattr(
        Embedder, "pooled", lambda self, texts, kinds, **named: (encoded.extend(kinds), pooled(self, texts, kinds))[1]
    )
    asked = asked_of([str(files / "labels.csv")], [], [], [str(files / "kinds.csv")], str(files / "wordings.yaml"))
    evaluation = evaluate_folders(models[:1], asked, (16, 8))
    assert (encoded.count("query"), encoded.count("passage")) == (6 + 2 * 6, 6 + 40)  # no passage again

    embedder, labels = Embedder.load(models[0]), ClassificationTest({t: str(i % 2) for i, t in enumerate(texts)})
    whole, cut = evaluation.rows
    assert whole.classification["kinds"] == score_classification(embedder.encode(texts), labels)
    assert cut.classification["kinds"] == score_classification(truncate(embedder.encode(texts), 8), labels)
    assert "kinds accuracy" in [column.header for column in console_table(evaluation).columns]

    test = as_test((texts[i], texts[i + 6]) for i in range(6))
    passages = embedder.encode(texts[6:12])
    for row, scored, dim in zip(evaluation.instructions, (whole, cut), (16, 8), strict=True):
        assert (row.provider, row.test, row.kind, row.dim) == (scored.provider, "labels", "query", dim)
        for wording, found in row.wordings.items():
            queries = embedder.encode([wording + text for text in texts[:6]])
            expected = score_retrieval(truncate(queries, dim), truncate(passages, dim), test).ndcg10.value
            assert found == pytest.approx(expected)
        assert row.plain == pytest.approx(scored.retrieval["labels"].ndcg10.value)
    assert instruction_table(evaluation.instructions).row_count == 2


def test_a_dimension_without_a_head_is_cut_and_says_so(files: Path, models: list[str]) -> None:
    evaluation = evaluate_folders(models[:1], asked_of([str(files / "labels.csv")], [], []), (4, 8))
    assert [(row.provider, row.dim) for row in evaluation.rows] == [(f"{models[0]}, cut", 4), (f"{models[0]}, cut", 8)]
    with pytest.raises(UserError, match=r"--dim 99: .* has \d+ dimensions"):
        evaluate_folders(models[:1], asked_of([str(files / "labels.csv")], [], []), (99,))


@pytest.mark.parametrize(("dim", "said"), [(300, r"has 64, 128 dimensions, and cuts others from 64"), (0, "--dim 0")])
def test_a_dimension_is_cut_from_the_default_alone(dim: int, said: str) -> None:
    refuse_dims("model", (1, 63, 64, 128), (64, 128), 64)
    with pytest.raises(UserError, match=said):
        refuse_dims("model", (dim,), (64, 128), 64)


@pytest.mark.parametrize(
    ("pairs", "similarity", "problem"),
    [
        ([], [], "nothing to score a model by"),
        (["absent.csv"], [], "no file matches 'absent.csv'"),
        (["labels.txt"], [], r"labels.txt: expected a name that ends in .jsonl, .csv, .tsv, .parquet"),
        (["{csv"], [], "is not a mapping"),
        (
            ["{csv: a.csv, colour: red}"],
            [],
            r"evaluation.retrieval\[0\].pairs.colour: unknown key; keys here: jsonl",
        ),
        ([], ["{csv: a.csv, score: null}"], "pairs need score"),
        ([], ["faq.jsonl"], "no column"),
    ],
)
def test_what_cannot_be_scored(
    pairs: list[str], similarity: list[str], problem: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=problem):
        asked_of(pairs, [], similarity)


def test_wordings_are_for_retrieval(files: Path) -> None:
    with pytest.raises(UserError, match="--instructions: are for retrieval; give --pairs FILE or --beir"):
        asked_of([], [], [str(files / "labels.csv")], (), "default")


def test_judgements_are_numbers_that_differ(tmp_path: Path, models: list[str]) -> None:
    for text, problem in (("high", "expected a number"), ("3", "pairs with one judgement")):
        (tmp_path / "sts.csv").write_text(f"query,passage,score\na,b,3\na,c,{text}\n")
        with pytest.raises(UserError, match=problem):
            evaluate_folders(models[:1], asked_of([], [], [str(tmp_path / "sts.csv")]), ())
