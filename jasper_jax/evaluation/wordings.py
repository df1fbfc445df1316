"""Wordings of a model's prompts, under which its retrieval is scored again.

A wording is the complete text put before a query or a passage, its last space or line end included. A model without
prompts gets it too: nothing stops its user from sending one.
"""

from __future__ import annotations

from collections.abc import Mapping

from jasper_jax.encoders.prompts import KINDS
from jasper_jax.recipe.yaml_text import read_yaml
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path

DEFAULT = {
    "query": (
        "Instruct: Given a question, retrieve passages that answer the question.\nQuery: ",
        "Instruct: Given a web search query, find the documents that are relevant to it.\nQuery: ",
        "Instruct: Retrieve the texts in which the answer to this question can be found.\nQuery: ",
        "Instruct: Which passage would help somebody who asks this?\nQuery: ",
        "Represent this question for searching relevant passages: ",
        "Question: ",
        "query: ",
        "search_query: ",
    )
}
"""Four tasks as models of the kind of Stella and NV-Embed are told them, and four short prefixes. Passages keep their
prompt, which most models do not have."""


def read_wordings(asked: bool | str, key: str = "evaluation.instructions") -> Mapping[str, tuple[str, ...]]:
    """Wordings by kind: none for False, :data:`DEFAULT` for True, else those of a YAML or JSON file.

    Raises:
      UserError: no such file, no mapping of ``query`` and ``passage`` to lists of texts, or no wording at all.
    """
    if isinstance(asked, bool):
        return DEFAULT if asked else {}
    tree = read_yaml(user_path(asked, key), f"{key}: {asked}", "wordings, or true")
    expected = 'e.g. query: ["Question: ", "query: "]'
    if not tree:
        raise UserError(f"{key}: {asked}: has no wordings; expected lists of texts by kind, {expected}")
    if not isinstance(tree, dict):
        raise UserError(f"{key}: {asked}: wordings without a kind; put them under {' or '.join(KINDS)}, {expected}")
    for kind, texts in tree.items():
        if kind not in KINDS:
            raise UserError(f"{key}: {asked}: {kind!r} is no kind of text; expected {' or '.join(KINDS)}, {expected}")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{key}: {asked}: {kind} is {texts!r}; expected a list of texts, {expected}")
        if len(set(texts)) < len(texts):
            raise UserError(f"{key}: {asked}: {kind} has a wording twice; remove one")
    return {kind: tuple(tree[kind]) for kind in KINDS if kind in tree}
