"""The recipe's tests on texts: lists of texts, which a model encodes once, and the scores of its vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.assets.corpora import (
    RetrievalTest,
    as_test,
    beir_file,
    lee_similarities,
    read_beir,
    retrieval_split,
    retrieval_test,
    subset,
)
from jasper_jax.data.pair_sources import check_pairs, read_pairs
from jasper_jax.data.texts import TextStore
from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.similarity import score_similarity
from jasper_jax.recipe.config import Recipe, Retrieval
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path

AGREEMENT_TEXTS = 2000
"""The most held-out texts that are compared for agreement."""
HELD_OUT = "held_out"
"""Name of the list of those texts."""
PAIRS = "held-out pairs"
"""Prefix of the lists of the held-out pairs' texts; no test of a recipe can have this name."""


def _held_out_pairs(texts: TextStore) -> RetrievalTest:
    """The held-out pairs as a retrieval test among their own passages."""
    table = texts.pairs["held_out"]

    def by_id(rows: np.ndarray) -> dict[str, str]:
        return {str(row): text.text for row, text in zip(rows.tolist(), texts.read("held_out", rows))}

    relevant = {
        str(row): dict.fromkeys(map(str, table.answers_of(row).tolist()), 1) for row in np.unique(table.query).tolist()
    }
    return RetrievalTest(by_id(table.passages), by_id(np.unique(table.query)), relevant)


def check_test(spec: Retrieval) -> None:
    """UserError if a test's files, columns or corpus do not exist; reads one row at most."""
    key = f"evaluation.retrieval.{spec.name}"
    if spec.asset is not None:
        retrieval_split(spec.asset, spec.split)
    elif spec.beir is not None and not beir_file(user_path(spec.beir, f"{key}.beir") / "corpus.jsonl").is_file():
        raise UserError(f"{key}.beir: {spec.beir}: expected a folder with corpus.jsonl, queries.jsonl, qrels/test.tsv")
    elif spec.pairs is not None:
        check_pairs(spec.pairs, f"{key}.pairs")


def _read(spec: Retrieval) -> RetrievalTest:
    if spec.asset is not None:
        return retrieval_test(spec.asset, spec.split)
    if spec.beir is not None:
        return read_beir(spec.beir)
    assert spec.pairs is not None
    pairs = [pair for pair in read_pairs(spec.pairs, f"evaluation.retrieval.{spec.name}.pairs") if pair.score]
    return as_test(((pair.query, pair.passage) for pair in pairs), (text for pair in pairs for text in pair.negatives))


class Texts(NamedTuple):
    """The texts of a list, with the kind of each."""

    texts: list[str]
    kinds: list[str]


class TextTests:
    """The tests of a recipe. ``lists``: the texts to encode, by name; ``held_out``: the number of held-out texts."""

    def __init__(self, recipe: Recipe, texts: TextStore | None):
        self.lists: dict[str, Texts] = {}
        self.retrieval: dict[str, Any] = {}
        for spec in recipe.evaluation.retrieval:
            test = subset(_read(spec), spec.passages, spec.queries_per_passage)
            self.retrieval[spec.name] = test
            for name, kind, by_id in (("queries", "query", test.queries), ("passages", "passage", test.passages)):
                self.lists[f"{spec.name}/{name}"] = Texts(list(by_id.values()), [kind] * len(by_id))
        self.human: dict[str, np.ndarray] = {}
        for name in recipe.evaluation.similarity:
            documents, self.human[name] = lee_similarities()
            self.lists[name] = Texts(documents, ["passage"] * len(documents))
        self.pairs: RetrievalTest | None = None
        if recipe.evaluation.pairs and texts is not None and len(texts.pairs["held_out"]):
            self.pairs = test = _held_out_pairs(texts)
            for name, kind, by_id in (("queries", "query", test.queries), ("passages", "passage", test.passages)):
                self.lists[f"{PAIRS}/{name}"] = Texts(list(by_id.values()), [kind] * len(by_id))
        self.held_out = 0
        self.agreement = recipe.evaluation.agreement
        if (self.agreement or recipe.evaluation.precisions) and texts is not None:
            self.held_out = min(texts.size("held_out"), AGREEMENT_TEXTS)
        if self.held_out and texts is not None:
            rows = texts.read("held_out", range(self.held_out))
            self.lists[HELD_OUT] = Texts([r.text for r in rows], [r.kind for r in rows])

    def score(self, vectors: Mapping[str, np.ndarray], reference: np.ndarray | None) -> dict[str, Any]:
        """The scores of one provider's ``vectors``, by list, as fields of an ``EvaluationRow``.

        ``reference [held_out, T]``: the vectors with which those of held-out texts are compared."""
        scores: dict[str, Any] = {
            "retrieval": {
                name: score_retrieval(vectors[f"{name}/queries"], vectors[f"{name}/passages"], test)
                for name, test in self.retrieval.items()
            },
            "similarity": {name: score_similarity(vectors[name], human) for name, human in self.human.items()},
        }
        if self.pairs is not None:
            scores["pairs"] = score_retrieval(vectors[f"{PAIRS}/queries"], vectors[f"{PAIRS}/passages"], self.pairs)
        if self.agreement and reference is not None and HELD_OUT in vectors:
            scores["agreement"] = score_agreement(vectors[HELD_OUT], reference)
        return scores
