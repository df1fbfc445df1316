"""Labelled pairs of a recipe: the rows of every kind of source as queries with the passages that answer them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from jasper_jax.assets.corpora import corpus_splits, read_beir, read_questions
from jasper_jax.data.libraries import Row, hf_rows, require
from jasper_jax.data.rows import strings, table_rows
from jasper_jax.data.source_files import kind_of, pattern_of
from jasper_jax.recipe.config_sources import PairSource
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path

KEY = "texts.pairs"


class LabelledPair(NamedTuple):
    """A query, a passage that answers it, passages that do not, and the label's weight, above 0 and at most 1."""

    query: str
    passage: str
    negatives: tuple[str, ...]
    score: float


def read_pairs(source: PairSource, key: str = KEY, *, judged: bool = False) -> Iterator[LabelledPair]:
    """The pairs of one source in the order of its rows; ``limit`` is not applied here. A score of 0 is kept.

    ``judged``: scores are judgements, on a scale of their own, and not weights.

    Raises:
      UserError: a column is missing, a query or passage is empty, a score is not a number (from 0 to 1, as a weight).
    """
    if source.asset is not None:
        splits = corpus_splits(source.asset, _splits(source) or None)
        for passage, questions in read_questions(source.asset, splits):
            yield from (LabelledPair(question, passage, (), 1.0) for question in questions)
        return
    if source.beir is not None:
        for split in _splits(source) or ["train"]:
            test = read_beir(source.beir, split)
            for query, answers in test.relevant.items():
                for passage in sorted(answers.keys() & test.passages.keys()):
                    yield LabelledPair(test.queries[query], test.passages[passage], (), 1.0)
        return
    for row in _rows(source, key):
        yield _pair(source, row, judged)


def _rows(source: PairSource, key: str) -> Iterator[Row]:
    if source.hf is not None:
        yield from hf_rows(source.hf, source.config, _splits(source), key)
        return
    yield from table_rows(kind_of(source), str(pattern_of(source)), _columns(source), key)


def _splits(source: PairSource) -> list[str]:
    return [source.split] if isinstance(source.split, str) else list(source.split or [])


def _negative_columns(source: PairSource) -> list[str]:
    return [source.negatives] if isinstance(source.negatives, str) else list(source.negatives or [])


def _columns(source: PairSource) -> list[str]:
    score = [] if source.score is None else [source.score]
    return list(dict.fromkeys([source.query, source.passage, *_negative_columns(source), *score]))


def _pair(source: PairSource, row: Row, judged: bool) -> LabelledPair:
    require(_columns(source), list(row.values), row.where)
    negatives = _texts(row.values, _negative_columns(source), row.where)
    return LabelledPair(
        _text(row, source.query),
        _text(row, source.passage),
        tuple(text for text in negatives if text.strip()),
        1.0 if source.score is None else _score(row, source.score, judged),
    )


def _texts(values: Mapping[str, Any], columns: Iterable[str], where: str) -> list[str]:
    return [text for column in columns for text in strings(values[column], column, where)]


def _text(row: Row, column: str) -> str:
    found = _texts(row.values, [column], row.where)
    if len(found) != 1:
        raise UserError(
            f"{row.where}: column {column!r} holds {len(found)} texts; expected one, and a row for each pair"
        )
    if not found[0].strip():
        raise UserError(f"{row.where}: column {column!r} is empty; fill it in or remove the row")
    return found[0]


def _score(row: Row, column: str, judged: bool) -> float:
    try:
        score = float(row.values[column])
    except (TypeError, ValueError):
        score = math.nan
    if judged and not math.isfinite(score):
        raise UserError(f"{row.where}: column {column!r} is {row.values[column]!r}; expected a number")
    if not judged and not 0 <= score <= 1:
        raise UserError(
            f"{row.where}: column {column!r} is {row.values[column]!r}; expected a number from 0 to 1, e.g. the score"
            f" divided by the largest"
        )
    return score


def check_pairs(source: PairSource, key: str = KEY, *, judged: bool = False) -> None:
    """UserError if a source's files, its columns or its asset do not exist; reads one row."""
    if pattern_of(source) is not None:
        next(read_pairs(source, key, judged=judged), None)
    elif source.asset is not None:
        if not corpus_splits(source.asset, _splits(source) or None):
            raise UserError(f"{key}: corpus {source.asset!r} has no questions; squad-shifts has")
    elif source.beir is not None and not (folder := user_path(source.beir, key)).is_dir():
        raise UserError(f"{key}: {folder}: no such folder; expected corpus.jsonl, queries.jsonl and qrels/")
