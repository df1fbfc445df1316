"""The recipe's tests on texts: lists of texts, which a model encodes once, and the scores of its vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jasper_jax.assets.corpora import (
    MOST_GAIN,
    RetrievalTest,
    as_test,
    beir_file,
    lee_similarities,
    read_beir,
    retrieval_split,
    retrieval_test,
    subset,
    text_id,
)
from jasper_jax.data.labelled_texts import read_labels
from jasper_jax.data.pair_sources import check_pairs, read_pairs
from jasper_jax.data.texts import TextStore
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.agreement import score_agreement
from jasper_jax.evaluation.classification import ClassificationTest, score_classification
from jasper_jax.evaluation.distractors import draw_distractors
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.evaluation.similarity import score_judged_pairs, score_similarity
from jasper_jax.evaluation.wordings import read_wordings
from jasper_jax.recipe.config_evaluation import Classification, Evaluation, Retrieval, Similarity
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.shared_rows import make_rows

AGREEMENT_TEXTS = 2000
"""The most held-out texts that are compared for agreement."""
HELD_OUT = "held_out"
"""Name of the list of those texts."""
PARTS = {"query": "queries", "passage": "passages"}
"""Kind of text -> the last part of the names of a retrieval test's lists."""
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
        check_pairs(spec.pairs, f"{key}.pairs", judged=True)


def _read(spec: Retrieval, texts: TextStore | None) -> RetrievalTest:
    test = _read_labels(spec)
    smaller = subset(test, spec.passages, spec.queries_per_passage)
    if spec.distractors is not None:
        assert texts is not None
        key = f"evaluation.retrieval.{spec.name}.distractors"
        more = draw_distractors(texts, spec.distractors, test.passages.values(), key)
        smaller.passages.update((text_id(text), text) for text in more)
    return smaller


def _read_labels(spec: Retrieval) -> RetrievalTest:
    if spec.asset is not None:
        return retrieval_test(spec.asset, spec.split)
    if spec.beir is not None:
        return read_beir(spec.beir)
    assert spec.pairs is not None
    key = f"evaluation.retrieval.{spec.name}.pairs"
    pairs = list(read_pairs(spec.pairs, key, judged=True))
    gains = [_gain(pair.score, f"{key}: query {pair.query[:60]!r}") for pair in pairs]
    others = (text for pair in pairs for text in (pair.passage, *pair.negatives))  # judged not to answer, too
    test = as_test(((pair.query, pair.passage) for pair, gain in zip(pairs, gains) if gain), others)
    if not test.queries:
        raise UserError(f"{key}: {len(pairs):,} pairs, none with a score above 0; a test needs a query with an answer")
    for pair, gain in zip(pairs, gains):
        if gain:
            answers = test.relevant[text_id(pair.query)]
            answers[text_id(pair.passage)] = max(gain, answers[text_id(pair.passage)])
    return test


def _gain(score: float, where: str) -> int:
    """The gain in nDCG of a pair with ``score``: none of 0 or less, 1 up to 1, above that the whole number."""
    if score <= 1:
        return int(score > 0)
    if score != int(score):
        raise UserError(f"{where}: score {score:g}; expected 0, a share up to 1, or a whole number, the gain in nDCG")
    if score > MOST_GAIN:
        raise UserError(f"{where}: score {score:g}; expected a gain in nDCG of at most {MOST_GAIN:,}")
    return int(score)


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


def check_classification(spec: Classification) -> None:
    """UserError if a test's file or columns do not exist, or its labels cannot be scored; reads the file."""
    read_labels(spec, f"evaluation.classification.{spec.name}.file")


class Texts(NamedTuple):
    """The texts of a list, with the kind of each."""

    texts: list[str]
    kinds: list[str]


def encode_list(encode: Callable[[list[str], list[str]], np.ndarray], listed: Texts) -> np.ndarray:
    """``encode(texts, kinds)`` ``[n, D]`` of a list; all processes make it together."""
    texts, kinds = listed
    return make_rows(lambda rows: encode([texts[i] for i in rows], [kinds[i] for i in rows]), len(texts))


def after(prompts: Mapping[str, str] | None) -> str:
    """For a line of progress: the wordings of ``prompts``."""
    return "".join(f" after {wording!r}" for wording in (prompts or {}).values())


class Reworded(NamedTuple):
    """A list of texts to encode once more, after another wording of the prompt of its ``kind``."""

    list: str
    kind: str
    wording: str

    @property
    def prompts(self) -> dict[str, str]:
        """By kind, in place of a model's own."""
        return {self.kind: self.wording}


class TextTests:
    """The tests of a recipe. ``lists``: the texts to encode, by name; ``reworded``: those to encode once more, by names
    of their own; ``held_out``: the number of held-out texts."""

    def __init__(self, asked: Evaluation, texts: TextStore | None):
        """``asked``: the recipe's section ``evaluation``."""
        self.lists: dict[str, Texts] = {}
        self.retrieval: dict[str, RetrievalTest] = {}
        for spec in asked.retrieval:
            self.retrieval[spec.name] = test = _read(spec, texts)
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
        self.classification: dict[str, ClassificationTest] = {}
        for spec in asked.classification:
            labels = read_labels(spec, f"evaluation.classification.{spec.name}.file")
            self.classification[spec.name] = ClassificationTest(labels)
            self.lists[f"{spec.name}/texts"] = Texts(list(labels), ["passage"] * len(labels))
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
        self.reworded = {
            f"{test}/{part}#{number}": Reworded(f"{test}/{part}", kind, wording)
            for kind, wordings in read_wordings(asked.instructions).items()
            for part in (PARTS[kind],)
            for test in self.all_retrieval
            for number, wording in enumerate(wordings)
        }

    @property
    def all_retrieval(self) -> dict[str, RetrievalTest]:
        """Every retrieval test by the first part of its lists' names, the held-out pairs among them."""
        return {**self.retrieval, **({PAIRS: self.pairs} if self.pairs is not None else {})}

    def encode_reworded(
        self, embedder: Embedder, encode: Callable[[Embedder, Texts], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """``encode`` of each of ``reworded``, with the prompts of ``embedder`` in its wording."""
        made: dict[str, np.ndarray] = {}
        for name, again in self.reworded.items():
            listed = self.lists[again.list]
            say(f"Embedding {len(listed.texts):,} texts of {again.list}{after(again.prompts)}")
            made[name] = encode(embedder.with_prompts(again.prompts), listed)
        return made

    def score(self, vectors: Mapping[str, np.ndarray], reference: np.ndarray | None) -> dict[str, Any]:
        """The scores of one provider's ``vectors``, by list, as fields of an ``EvaluationRow``.

        ``reference [held_out, T]``: the vectors with which those of held-out texts are compared."""
        scores = self.score_retrieval(vectors)
        scores["similarity"] = {
            **{name: score_similarity(vectors[name], human) for name, human in self.human.items()},
            **{name: score_judged_pairs(vectors[name], judged) for name, judged in self.judged.items()},
        }
        scores["classification"] = {
            name: score_classification(vectors[f"{name}/texts"], test) for name, test in self.classification.items()
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
