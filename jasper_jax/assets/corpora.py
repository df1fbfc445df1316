"""The catalogue's corpora as documents for the text store and as tests; test folders in BEIR's format.

The id of a SQuAD-shifts passage or query is the sha1 of its stripped UTF-8 text, so a question about several passages
is one query with several relevant passages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jasper_jax.assets.cache import fetch_asset
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.text_files import SUFFIXES, numbered_lines

SQUAD_SPLITS = {
    "squad": "squaddev_v1.1.json",
    "new_wiki": "new_wiki_v1.0.json",
    "nyt": "nyt_v1.0.json",
    "reddit": "reddit_v1.0.json",
    "amazon": "amazon_reviews_v1.0.json",
}
SPLITS: dict[str, tuple[str, ...]] = {"squad-shifts": tuple(SQUAD_SPLITS), "randfacts": (), "lee": ()}
"""The readable corpora and their splits; none where the corpus is not divided."""
MOST_GAIN = 100_000
"""Of a judgement; grades go to 4, or 100. The metrics' library keeps a count of each gain up to the highest."""


class Document(NamedTuple):
    """A text of a source."""

    text: str
    kind: Literal["query", "passage"]
    source: str


@dataclass(frozen=True)
class RetrievalTest:
    """Queries, passages, and the passages that answer each query."""

    passages: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]
    """For each query id the ids of its relevant passages, at least one, with their gains (1 without grades)."""


def corpus_splits(asset: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The splits ``wanted`` of a corpus, None: all. UserError: there is no such corpus or split."""
    if asset not in SPLITS:
        close = nearest(asset, list(SPLITS))
        raise UserError(f"there is no corpus {asset!r}{close}; the corpora are {', '.join(SPLITS)}")
    splits = SPLITS[asset]
    for split in wanted or ():
        if not splits:
            raise UserError(f"corpus {asset!r} has no splits, but split is {split!r}; leave split out")
        if split not in splits:
            close = nearest(split, list(splits))
            raise UserError(f"corpus {asset!r} has no split {split!r}{close}; it has {', '.join(splits)}")
    return tuple(dict.fromkeys(wanted)) if wanted else splits


def _squad(folder: Path, split: str) -> Iterator[tuple[str, list[str]]]:
    """Each passage of a split with its questions, in the order of the file."""
    for article in json.loads((folder / SQUAD_SPLITS[split]).read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"].strip(), [qa["question"].strip() for qa in paragraph["qas"]]


def read_questions(asset: str, splits: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each passage of these splits (see :func:`corpus_splits`) of a corpus with its questions."""
    folder = fetch_asset(asset)
    for split in splits:
        yield from _squad(folder, split)


def _lines(path: Path, encoding: str) -> list[str]:
    return [line.strip() for line in path.read_text(encoding).split("\n") if line.strip()]


def read_corpus(asset: str, splits: list[str] | None = None, kind: str | None = None) -> Iterator[Document]:
    """The documents of a corpus, without duplicates; None of ``splits`` and ``kind`` means all.

    ``squad-shifts`` has passages, each followed by its questions; ``randfacts`` and ``lee`` have passages.

    Raises:
      UserError: before the first document, for a corpus, split or kind that does not exist.
    """
    chosen = corpus_splits(asset, splits)
    if kind not in (None, "passage", "query") or (kind == "query" and not SPLITS[asset]):
        has = "query and passage" if SPLITS[asset] else "passage"
        raise UserError(f"corpus {asset!r} has no documents of kind {kind!r}; it has {has}")
    return _unique(_documents(asset, chosen, fetch_asset(asset)), kind)


def _documents(asset: str, splits: Sequence[str], folder: Path) -> Iterator[Document]:
    if asset == "squad-shifts":
        for split in splits:
            for passage, questions in _squad(folder, split):
                yield Document(passage, "passage", f"{asset}/{split}")
                yield from (Document(question, "query", f"{asset}/{split}") for question in questions)
        return
    name, encoding = {"randfacts": ("safe.txt", "utf-8"), "lee": ("lee.cor", "latin-1")}[asset]
    yield from (Document(text, "passage", asset) for text in _lines(folder / name, encoding))


def _unique(documents: Iterator[Document], kind: str | None) -> Iterator[Document]:
    seen: set[tuple[str, str]] = set()
    for document in documents:
        key = (document.kind, document.text)
        if kind in (None, document.kind) and key not in seen:
            seen.add(key)
            yield document


def text_id(text: str) -> str:
    """The id of a passage or query: the sha1 of its text."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def retrieval_test(asset: str, split: str | None) -> RetrievalTest:
    """One split of SQuAD-shifts: every question is a query, and its passage is relevant."""
    chosen = retrieval_split(asset, split)
    rows = list(_squad(fetch_asset(asset), chosen))
    pairs = ((question, passage) for passage, questions in rows for question in questions)
    return as_test(pairs, (passage for passage, _ in rows))


def retrieval_split(asset: str, split: str | None) -> str:
    """The split of a retrieval test. UserError: the corpus has no such test or split."""
    if not SPLITS.get(asset):
        having = ", ".join(name for name, splits in SPLITS.items() if splits)
        raise UserError(f"corpus {asset!r} has no retrieval test; {having} has")
    if split is None:
        raise UserError(f"a retrieval test of {asset!r} needs split: one of {', '.join(SPLITS[asset])}")
    (chosen,) = corpus_splits(asset, [split])
    return chosen


def as_test(pairs: Iterable[tuple[str, str]], others: Iterable[str] = ()) -> RetrievalTest:
    """Labelled pairs of a query and a passage that answers it as a test among all passages of the pairs and ``others``.
    Equal texts are one query or passage."""
    test = RetrievalTest({}, {}, {})
    for query, passage in pairs:
        test.passages[text_id(passage)] = passage
        test.queries[text_id(query)] = query
        test.relevant.setdefault(text_id(query), {})[text_id(passage)] = 1
    for passage in others:
        test.passages.setdefault(text_id(passage), passage)
    return test


def subset(test: RetrievalTest, passages: int | None, queries_per_passage: int | None) -> RetrievalTest:
    """A smaller test: the first passages by sorted id, and of each the first queries by sorted id; None takes all.

    Queries without a remaining relevant passage are dropped.
    """
    kept = set(sorted(test.passages)[:passages])
    relevant = dict(test.relevant)
    if passages is not None:
        judged = {
            query: {key: gain for key, gain in answers.items() if key in kept} for query, answers in relevant.items()
        }
        relevant = {query: answers for query, answers in judged.items() if answers}
    if queries_per_passage is not None:
        queries_of: dict[str, list[str]] = {}
        for query in sorted(relevant):
            for passage in relevant[query]:
                queries_of.setdefault(passage, []).append(query)
        chosen = {query for queries in queries_of.values() for query in queries[:queries_per_passage]}
        relevant = {query: answers for query, answers in relevant.items() if query in chosen}
    return RetrievalTest(
        {key: text for key, text in test.passages.items() if key in kept},
        {key: text for key, text in test.queries.items() if key in relevant},
        relevant,
    )


def read_beir(folder: str | Path, split: str = "test") -> RetrievalTest:
    """A folder in BEIR's format: ``corpus.jsonl``, ``queries.jsonl`` (either may be compressed), ``qrels/<split>.tsv``.

    A passage is its title, a space, its text. A score above 0 is relevant, and is the gain in nDCG; queries without one
    are dropped. As in BEIR, a judgement may name a passage that the corpus lacks: it counts as not retrieved. One that
    names an unknown query is skipped.

    Raises:
      UserError: with file and line, or a file is a link out of the folder.
    """
    folder = user_path(folder, "beir")
    passages = _texts(folder / "corpus.jsonl", folder, titled=True)
    queries = _texts(folder / "queries.jsonl", folder, titled=False)
    path = folder / "qrels" / f"{split}.tsv"
    relevant: dict[str, dict[str, int]] = {}
    unknown: list[str] = []
    for number, line in _numbered(path, folder):
        where, fields = f"{path}:{number}", line.split("\t")
        if number == 1 and fields[-1].strip() == "score":
            continue
        if len(fields) != 3:
            raise UserError(f"{where}: expected 3 tab-separated columns: query-id, corpus-id, score; got {len(fields)}")
        query, passage, score = (value.strip() for value in fields)
        try:
            gain = int(score)
        except ValueError:
            raise UserError(f"{where}: score {score!r} is not an integer") from None
        if gain > MOST_GAIN:
            raise UserError(f"{where}: score {score[:40]}; expected a gain of at most {MOST_GAIN:,}")
        if gain <= 0:
            continue
        if query in queries:
            relevant.setdefault(query, {})[passage] = gain
        else:
            unknown.append(query)
    if not relevant:
        seen = f"; {len(unknown):,} rows name queries that queries.jsonl lacks, e.g. {unknown[0]!r}" if unknown else ""
        raise UserError(f"{path}: no query has a relevant passage (a score above 0){seen}")
    named = {passage for answers in relevant.values() for passage in answers}
    if not named & passages.keys():
        raise UserError(f"{path}: corpus.jsonl has none of the {len(named):,} ids that it names, e.g. {min(named)!r}")
    if unknown:
        say(f"{path}: {len(set(unknown)):,} queries that queries.jsonl lacks were skipped, e.g. {unknown[0]!r}.")
    return RetrievalTest(passages, {key: text for key, text in queries.items() if key in relevant}, relevant)


def beir_file(path: Path) -> Path:
    """``path``, or the compressed file of that name with one more ending."""
    packed = (path.with_name(path.name + suffix) for suffix in SUFFIXES)
    return path if path.exists() else next((file for file in packed if file.exists()), path)


def _numbered(path: Path, folder: Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines with their numbers, from 1. UserError: the file is not one of ``folder``, whose links a
    stranger may have made."""
    try:
        file_inside(file := beir_file(path), folder)
        yield from ((number, line) for number, line in numbered_lines(file) if line.strip())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/test.tsv"
        ) from None


def _texts(path: Path, folder: Path, *, titled: bool) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in _numbered(path, folder):
        where = f"{path}:{number}"
        try:
            row: Any = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        row = dict(row) if isinstance(row, dict) else {}
        if type(row.get("_id")) is int:
            row["_id"] = str(row["_id"])  # as qrels name it
        fields = ["title", "text"] if titled and row.get("title") is not None else ["text"]
        for key in ["_id", *fields]:
            if not isinstance(row.get(key), str):
                raise UserError(f"{where}: {key!r} is missing or not a string; expected _id and text")
        if row["_id"] in texts:
            raise UserError(f"{where}: id {row['_id']!r} is not unique")
        texts[row["_id"]] = " ".join(row[key].strip() for key in fields).strip()
    if not texts:
        raise UserError(f"{path}: no texts")
    return texts


def lee_similarities() -> tuple[list[str], np.ndarray]:
    """The 50 Lee texts and the similarity people see between each two.

    Returns:
      The texts, and ``[50, 50]`` float64 mean ratings between 0 and 1, symmetric, with 1 on the diagonal. Compare at
      ``np.triu_indices(50, 1)``.
    """
    folder = fetch_asset("lee")
    texts = _lines(folder / "lee.cor", "latin-1")
    upper = np.triu(np.loadtxt(folder / "similarities0-1.txt"), 1)
    if upper.shape != (len(texts), len(texts)):
        raise UserError(f"{folder}: {len(texts)} texts, but similarities of shape {upper.shape}")
    return texts, upper + upper.T + np.eye(len(texts))
