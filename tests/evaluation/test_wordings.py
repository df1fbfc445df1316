"""Wordings of prompts: the default set, and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from jasper_jax.encoders.prompts import prompt_of, replace_prompts
from jasper_jax.evaluation.wordings import DEFAULT, read_wordings
from jasper_jax.runtime.errors import UserError


def test_wordings_are_asked_for_by_true_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wordings.yaml"
    path.write_text('passage: ["text: "]\nquery:\n- "a\\nb: "\n- ""\n')
    assert read_wordings(False) == {}
    assert read_wordings(True) == DEFAULT
    assert read_wordings(str(path)) == {"query": ("a\nb: ", ""), "passage": ("text: ",)}
    path.write_text('{"query": ["q: "]}')  # JSON too
    assert read_wordings(str(path)) == {"query": ("q: ",)}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no wordings; expected lists of texts by kind"),
        ("- 'query: '", "wordings without a kind; put them under query or passage"),
        ("queries: ['q: ']", "'queries' is no kind of text; expected query or passage"),
        ("query: 'q: '", r"query is 'q: '; expected a list of texts"),
        ("query: []", r"query is \[\]; expected a list of texts"),
        ("query: [1]", r"query is \[1\]; expected a list of texts"),
        ("query: [a, b, a]", "query has a wording twice"),
        ("query: [", "not YAML or JSON"),
    ],
)
def test_a_file_without_wordings_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "wordings.yaml").write_text(text)
    with pytest.raises(UserError, match=f"^key: .*wordings.yaml: {problem}") as error:
        read_wordings(str(tmp_path / "wordings.yaml"), "key")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file; expected a YAML or JSON file of wordings, or true"):
        read_wordings(str(tmp_path / "absent.yaml"))


def test_a_replaced_prompt_hides_every_name_of_its_kind() -> None:
    own = {"s2p_query": "own: ", "document": "text: ", "sts": "same: "}
    changed = replace_prompts(own, {"query": ""})
    assert [prompt_of(changed, kind) for kind in ("query", "passage", "sts")] == ["", "text: ", "same: "]
