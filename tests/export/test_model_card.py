"""A model card says what the hub's library reads, and shows no text that the recipe does not allow to be shown."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from jasper_jax.data.texts import TextRecord
from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.evaluation.precisions import PrecisionRow
from jasper_jax.evaluation.retrieval import Interval, RetrievalScore
from jasper_jax.evaluation.similarity import SimilarityScore
from jasper_jax.export.card_training import MOST_ROWS, History
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.runtime.errors import UserError
from tests.export.cards import BREAKOUTS, make_card, refuse_live, rendered
from tests.tiny import recipe_tree

PRECISIONS = {"float32": 32, "int8": 8, "binary": 1}
"""And the bytes of eight dimensions."""


@pytest.fixture
def made(tmp_path: Path):
    return partial(make_card, tmp_path)


def row(dim: int, head: str, stage: int, value: float) -> EvaluationRow:
    interval = Interval(value, value - 0.1, value + 0.1)
    score = RetrievalScore(9, 5, 0, interval, interval, interval, interval)
    return EvaluationRow(
        provider=f"after stage {stage}",
        role="student",
        dim=dim,
        head=head,
        stage=stage,
        retrieval={"mine": score},
        similarity={"lee": SimilarityScore(value / 2, 50)},
    )


def test_the_hubs_library_reads_licence_base_model_data_sets_and_scores(made) -> None:
    rows = [row(24, "fc1", 1, 0.1), row(24, "fc1", 3, 0.5), row(8, "fc2", 3, 0.25)]
    card = made(
        Evaluation(rows=rows),
        export={"license": "apache-2.0", "language": ["en", "de"]},
        texts={
            "sources": [
                {"hf": "org/set", "split": "train"},
                {"hf": "org/set", "split": "test"},
                {"jsonl": "mine.jsonl"},
            ]
        },
    )
    data = ModelCard(card).data
    assert (data.license, data.language, data.base_model) == ("apache-2.0", ["en", "de"], None)
    assert data.datasets == ["org/set"]
    assert "- Texts of `org/set`, a jsonl file.\n" in card
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert found["mine, 24 dimensions", "cosine_ndcg@10"] == 0.5, "of the last stage"
    assert found["mine, 8 dimensions", "cosine_recall@1"] == 0.25
    assert found["lee, 8 dimensions", "spearman_cosine"] == 0.125
    assert len(found) == 10


def test_vectors_in_fewer_bits_have_their_scores(made) -> None:
    interval = Interval(0.5, 0.4, 0.6)
    score = {"mine | <b>": RetrievalScore(9, 5, 0, interval, interval, interval, interval)}
    found = [PrecisionRow(dim=8, precision=name, bytes=size, retrieval=score) for name, size in PRECISIONS.items()]
    card = made(Evaluation(rows=[row(8, "fc1", 1, 0.1)], precisions=found))
    assert "### Vectors in fewer bits" in card
    assert "| 8 | int8 | 8 | 0.500 ± 0.100 | 100.0% |" in card
    refuse_live(rendered(card.removeprefix("---\n").split("\n---\n", 1)[1]))
    assert "Vectors in fewer bits" not in made(Evaluation(rows=[row(8, "fc1", 1, 0.1)]))


def test_of_an_asset_the_licence_and_the_hubs_name_are_known(made, tmp_path: Path, monkeypatch) -> None:
    from jasper_jax.export import card_metadata

    tree = parse_recipe(recipe_tree(tmp_path), "tiny")
    named = tree.model_copy(update={"student": tree.student.model_copy(update={"model": "all-MiniLM-L6-v2"})})
    assert card_metadata.base_model(named) == "sentence-transformers/all-MiniLM-L6-v2"
    assert card_metadata.inherited_licence(named) == "apache-2.0"
    assert card_metadata.inherited_licence(tree) is None


@pytest.mark.parametrize("text", [*BREAKOUTS, "a\n---\nlicense: mit\n---\n<b>"])
def test_samples_stay_text(text: str, made) -> None:
    history = History({"train": 5}, [TextRecord(text, "query")], [TextRecord(text, "query")] * 2, ())
    card = made(None, history)
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    refuse_live(rendered(body))
    data = ModelCard(card).data
    assert data.license is None
    assert len(data.widget[0]["sentences"]) == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert "secret" not in card
    assert front.startswith("library_name: sentence-transformers"), "without a licence or a language"


def test_the_log_marks_the_least_loss_of_each_stage_and_stays_short(made) -> None:
    losses = [3.0, 1.0, 2.0, *([2.5] * 100)]
    events = [{"stage": f"s{i > 50}", "stage_index": int(i > 50), "step": i, "loss": x} for i, x in enumerate(losses)]
    events.append({"stage": "sTrue", "stage_index": 1, "step": 200, "loss": 0.125})
    card = made(None, History({}, (), (), events))
    log = card.partition("Losses of held-out texts")[2].partition("##")[0]
    assert "| sFalse | 1 | **1.0000** |" in log
    assert "| sTrue | 200 | **0.1250** |" in log
    assert log.count("**") == 4
    assert log.count("\n| s") <= MOST_ROWS + 2


def test_no_text_leaves_unless_the_recipe_allows_it(tmp_path: Path) -> None:
    from jasper_jax.run import Run
    from tests.tiny import recipe
    from tests.training.runs import fill

    run = Run(recipe(tmp_path), progress=False)
    run.run_folder.claim()
    texts, _ = fill(run)
    history = History.of(run.run_folder)
    assert history.counts["train"] == texts.size("train")
    assert not history.samples
    assert not history.held_out
    shown = Run(recipe(tmp_path, export={"samples": 2}), progress=False)
    history = History.of(shown.run_folder)
    assert [record.text for record in history.samples] == [record.text for record in texts.read("train", range(2))]
    assert len(history.held_out) == 2


@pytest.mark.parametrize(("key", "value"), [("license", "Apache 2.0"), ("language", ["English!"]), ("samples", -1)])
def test_what_the_hub_would_refuse_is_refused(key: str, value, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"export.{key}"):
        parse_recipe(recipe_tree(tmp_path, export={key: value}), "tiny")
