"""The recipe's tests on texts: lists of texts, which a model encodes once, and the scores of its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from jasper_jax.evaluation.similarity import score_judged_pairs, score_similarity
from jasper_jax.recipe.config_evaluation import Evaluation, Retrieval, Similarity
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.shared_rows import make_rows

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


def check_judged(spec: Similarity) -> None:
    """UserError if a test's file or columns do not exist; reads one row."""
    check_pairs(spec.pairs, f"evaluation.similarity.{spec.name}.pairs", judged=True)


def _read_judged(spec: Similarity) -> tuple[list[str], list[tuple[int, int, float]]]:
    """The distinct texts, and each pair's positions among them with its judgement."""
    key = f"evaluation.similarity.{spec.name}.pairs"
    pairs = list(read_pairs(spec.pairs, key, judged=True))
    place: dict[str, int] = {}
    judged = [
        (place.setdefault(pair.query, len(place)), place.setdefault(pair.passage, len(place)), pair.score)
        for pair in pairs
    ]
    if len({score for *_, score in judged}) < 2:
        raise UserError(f"{key}: {len(judged)} pairs with one judgement; an order needs at least two")
    return list(place), judged


class Texts(NamedTuple):
    """The texts of a list, with the kind of each."""

    texts: list[str]
    kinds: list[str]


def encode_list(encode: Callable[[list[str], list[str]], np.ndarray], listed: Texts) -> np.ndarray:
    """``encode(texts, kinds)`` ``[n, D]`` of a list; all processes make it together."""
    texts, kinds = listed
    return make_rows(lambda rows: encode([texts[i] for i in rows], [kinds[i] for i in rows]), len(texts))


class TextTests:
    """The tests of a recipe. ``lists``: the texts to encode, by name; ``held_out``: the number of held-out texts."""

    def __init__(self, asked: Evaluation, texts: TextStore | None):
        """``asked``: the recipe's section ``evaluation``."""
        self.lists: dict[str, Texts] = {}
        self.retrieval: dict[str, Any] = {}
        for spec in asked.retrieval:
            test = subset(_read(spec), spec.passages, spec.queries_per_passage)
            self.retrieval[spec.name] = test
            for name, kind, by_id in (("queries", "query", test.queries), ("passages", "passage", test.passages)):
                self.lists[f"{spec.name}/{name}"] = Texts(list(by_id.values()), [kind] * len(by_id))
        self.human: dict[str, np.ndarray] = {}
        self.judged: dict[str, list[tuple[int, int, float]]] = {}
        for spec in asked.similarity:
            if isinstance(spec, Similarity):
                documents, self.judged[spec.name] = _read_judged(spec)
            else:
                documents, self.human[spec] = lee_similarities()
            name = spec.name if isinstance(spec, Similarity) else spec
            self.lists[name] = Texts(documents, ["passage"] * len(documents))
        self.pairs: RetrievalTest | None = None
        if asked.pairs and texts is not None and len(texts.pairs["held_out"]):
            self.pairs = test = _held_out_pairs(texts)
            for name, kind, by_id in (("queries", "query", test.queries), ("passages", "passage", test.passages)):
                self.lists[f"{PAIRS}/{name}"] = Texts(list(by_id.values()), [kind] * len(by_id))
        self.held_out = 0
        self.agreement = asked.agreement
        if (self.agreement or asked.precisions) and texts is not None:
            self.held_out = min(texts.size("held_out"), AGREEMENT_TEXTS)
        if self.held_out and texts is not None:
            rows = texts.read("held_out", range(self.held_out))
            self.lists[HELD_OUT] = Texts([r.text for r in rows], [r.kind for r in rows])

    def score(self, vectors: Mapping[str, np.ndarray], reference: np.ndarray | None) -> dict[str, Any]:
        """The scores of one provider's ``vectors``, by list, as fields of an ``EvaluationRow``.

        ``reference [held_out, T]``: the vectors with which those of held-out texts are compared."""
        scores = self.score_retrieval(vectors)
        scores["similarity"] = {
            **{name: score_similarity(vectors[name], human) for name, human in self.human.items()},
            **{name: score_judged_pairs(vectors[name], judged) for name, judged in self.judged.items()},
        }
        if self.agreement and reference is not None and HELD_OUT in vectors:
            scores["agreement"] = score_agreement(vectors[HELD_OUT], reference)
        return scores

    def score_retrieval(self, vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The scores of retrieval alone, as :meth:`score` has them; queries and passages may be of two providers."""
        scores: dict[str, Any] = {
            "retrieval": {
                name: score_retrieval(vectors[f"{name}/queries"], vectors[f"{name}/passages"], test)
                for name, test in self.retrieval.items()
            }
        }
        if self.pairs is not None:
            scores["pairs"] = score_retrieval(vectors[f"{PAIRS}/queries"], vectors[f"{PAIRS}/passages"], self.pairs)
        return scores
