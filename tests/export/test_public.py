"""What an exported folder tells the public: no paths, no addresses, and nothing that somebody's text turns into."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from jasper_jax.evaluation.evaluation import Evaluation, EvaluationRow
from jasper_jax.export.public import is_hub_id, public_name, public_recipe
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.places import IDS, PATHS, RUNS
from jasper_jax.runtime.markdown import code_span, markdown_text
from tests.export.cards import BREAKOUTS, make_card, refuse_live, rendered
from tests.recipe.test_keys import sections
from tests.tiny import recipe


@pytest.mark.parametrize("text", BREAKOUTS)
def test_hostile_text_stays_text(text: str) -> None:
    html = rendered(f"Before {markdown_text(text)} after.\n\n| a | b |\n| --- | --- |\n| {markdown_text(text)} | c |\n")
    assert html.count("<code>") == 2
    assert html.count("</td>") == 2
    assert "secret" not in html
    refuse_live(html)


@given(st.text(st.sampled_from("`\\|<>[]() \nab:/w.@&*_#!~\t\r\x1b"), max_size=12))
def test_any_text_is_one_span_or_a_name(text: str) -> None:
    tokens = MarkdownIt("commonmark").parseInline(f"x{code_span(text)}y")[0].children or []
    assert [token.type for token in tokens] == ["text", "code_inline", "text"]
    refuse_live(rendered(f"x {markdown_text(text)} y"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("org/name", "org/name"),
        ("minilm-l6", "minilm-l6"),
        ("/home/alice/models/secret-client", "secret-client"),
        ("~/models/x/", "x"),
        ("./x", "x"),
        ("../../clients/acme/model", "model"),
        ("$MODELS/x", "x"),
        ("runs/acme/export", "export"),
        ("C:\\Users\\alice\\model", "model"),
        ("gs://bucket/private/model", "model"),
        ("clients/acme", "acme"),  # a folder that exists
    ],
)
def test_a_path_is_its_last_part(name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clients" / "acme").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name(name) == shown
    assert is_hub_id(name) == (name == "org/name")


@pytest.fixture
def made(tmp_path: Path):
    return partial(make_card, tmp_path)


@pytest.mark.parametrize("text", BREAKOUTS)
def test_a_card_of_hostile_values(text: str, made, tmp_path: Path) -> None:
    row = EvaluationRow(provider=text, role="student", dim=8, stage=1, head=text, weights=5)
    evaluation = Evaluation(rows=[row], metadata={"held_out_texts": text})
    student = {"model": str(tmp_path / "student"), "prompts": {"query": text, "passage": text}}
    card = made(evaluation, student=student)
    front, body = card.split("---\n", 2)[1:]
    refuse_live(rendered(body))
    assert "base_model" not in front
    assert code_span(json.dumps(text, ensure_ascii=False)) in body, "the prompt is there to be read"


TEXTS = {
    *("name", "split", "config", "column", "kind_column", "query", "passage", "negatives", "score", "label", "image"),
    "resources",
    *(
        "group",
        "caption",
        "asset",
        "revision",
        "target",
        "stage",
        "train",
        "heads",
        "asymmetric",
        "dims",
        "license",
        "language",
    ),
}
"""Keys with texts that are no places: names, ids, columns, prompts, patterns."""


def test_every_text_of_a_recipe_is_a_place_or_known_to_be_none() -> None:
    """So that a new key with a path cannot be published by being forgotten."""
    texts = {
        name
        for section in sections(Recipe).values()
        for name, field in section.model_fields.items()
        if str in kinds_in(field.annotation)
    }
    assert texts == TEXTS | PATHS | IDS | RUNS


def kinds_in(annotation: Any) -> set[Any]:
    return {annotation}.union(*(kinds_in(argument) for argument in get_args(annotation)))


def test_the_folder_of_a_random_student_s_tokenizer_is_not_published(tmp_path: Path) -> None:
    config = {"model_type": "bert", "_name_or_path": "/home/alice/x", "vocab_size": 90}
    chosen = recipe(tmp_path, student={"config": config, "tokenizer": str(tmp_path / "student")})
    published = public_recipe(chosen)["student"]
    assert published["tokenizer"] == "student"
    assert published["config"] == {"model_type": "bert", "vocab_size": 90}


def test_neither_card_nor_marker_has_a_path_or_an_address(made, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "stores": str(tmp_path / "stores"),
        "mirror": "gs://private-bucket/run",
        "evaluation": {"retrieval": [{"name": "mine", "beir": "clients/acme/beir"}]},
    }
    card = made(**changes)
    chosen = recipe(tmp_path, **changes)
    marker = json.dumps(public_recipe(chosen))
    for text in (card, marker):
        assert str(tmp_path) not in text
        assert tmp_path.name not in text
        assert "private-bucket" not in text
        assert "acme" not in text
    assert public_recipe(chosen)["teachers"][0]["model"] == Path(str(chosen.teachers[0].model)).name
    assert public_recipe(chosen)["stages"] == chosen.model_dump(mode="json")["stages"], "patterns are no paths"
