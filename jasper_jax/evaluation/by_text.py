"""What an evaluation found of single texts, in ``evaluation-texts.json`` beside ``evaluation.json``: the queries that
the student gained and lost against each teacher, and the held-out texts on which it disagrees with them.

The file is bounded: a few examples of each comparison, texts that are cut, at most ``MOST_QUERIES`` scores of a test.
Its texts are as they may be printed (``runtime/shown.py``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from jasper_jax.evaluation.record_file import read_record
from jasper_jax.evaluation.retrieval import Interval
from jasper_jax.runtime.files import sealed, write_atomic
from jasper_jax.runtime.shown import shown

FILE = "evaluation-texts.json"
MOST_QUERIES = 10_000
"""Queries of a test whose scores are kept."""
LONGEST = 300
"""Characters of a text that are kept."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Provider(_Record):
    """Whose vectors are compared; other records name it by its position in ``ByText.providers``."""

    name: str
    """As in ``evaluation.json``."""
    dim: int
    role: Literal["student", "teacher"]


class Example(_Record):
    """A query, with the first ten passages of every provider."""

    query: str
    answers: list[int]
    """Positions in ``TestTexts.passages`` of the passages that are relevant, as far as they are kept there."""
    ndcg10: list[float]
    """By provider."""
    first: list[list[int]]
    """By provider: positions in ``TestTexts.passages``, the nearest first."""


class Comparison(_Record):
    """The queries of a test whose nDCG@10 is higher with the student's vectors (gained), or lower (lost)."""

    student: int
    teacher: int
    gained: int
    lost: int
    difference: Interval
    """Mean of the student's nDCG@10 less the teacher's, over the same queries."""
    most_gained: list[int]
    """Positions in ``TestTexts.examples``, the largest difference first."""
    most_lost: list[int]


class TestTexts(_Record):
    """A retrieval test."""

    __test__ = False  # no test class, whatever pytest thinks of its name

    queries: int
    query_sha256: str
    """Of the queries' texts: tests with the same may be compared query by query."""
    ndcg10: list[list[float]]
    """By provider: of each query, or of ``MOST_QUERIES`` at equal distances in the test's order."""
    passages: list[str]
    """Those that examples mention."""
    examples: list[Example]
    comparisons: list[Comparison]


class Density(_Record):
    """How often pairs of held-out texts have a similarity to the student and to a teacher."""

    student: int
    teacher: int
    low: float
    high: float
    """The range of both axes, in equal bins."""
    counts: list[list[int]]
    """``[student's bin][teacher's bin]``."""


class MapText(_Record):
    """A held-out text, where the teachers put it, and how much the student disagrees."""

    text: str
    kind: str
    place: list[float]
    """Its teachers' vector on the first principal components of the texts of the map."""
    disagreement: list[list[float]]
    """``[student][teacher]``: 1 less the correlation of its similarities to the other texts of the map; 0 to 2."""
    nearest: list[list[int]]
    """By provider: positions of the nearest texts of the map, the nearest first."""


class ByText(_Record):
    format: Annotated[int, Field(ge=1, le=1)] = 1
    origin: dict[str, JsonValue] = {}
    """What the evaluation depends on (``results.origin``): that of ``evaluation.json``, if both are of one command."""
    providers: list[Provider] = []
    """Students first."""
    retrieval: dict[str, TestTexts] = {}
    densities: list[Density] = []
    map: list[MapText] = []

    @model_validator(mode="after")
    def _positions(self) -> ByText:
        """ValueError for a position of nothing: a reader may follow all of them."""
        people, pairs = len(self.providers), pairs_of(self.providers)
        students, teachers = len({s for s, _ in pairs}), len({t for _, t in pairs})

        def need(positions: Iterable[int], count: int, what: str) -> None:
            if any(not 0 <= position < count for position in positions):
                raise ValueError(f"a position of one of {count} {what} is not of these")

        for test in self.retrieval.values():
            if len(test.ndcg10) != people or [(c.student, c.teacher) for c in test.comparisons] != pairs:
                raise ValueError("a test whose comparisons are not those of the providers")
            counts = {len(scores) for scores in test.ndcg10}
            if len(counts) > 1 or not counts <= set(range(1, MOST_QUERIES + 1)):
                raise ValueError(f"a test without the same 1 to {MOST_QUERIES} scores of every provider")
            for c in test.comparisons:
                need((*c.most_gained, *c.most_lost), len(test.examples), "examples")
            for e in test.examples:
                need((*e.answers, *(p for first in e.first for p in first)), len(test.passages), "passages")
                if not len(e.ndcg10) == len(e.first) == people:
                    raise ValueError("an example without every provider")
        for density in self.densities:
            need((density.student, density.teacher), people, "providers")
            if {len(row) for row in density.counts} != {len(density.counts)}:
                raise ValueError("a density that is no square")
        for text in self.map:
            need((n for nearest in text.nearest for n in nearest), len(self.map), "texts")
            shape = [len(row) for row in text.disagreement], len(text.nearest), len(text.place)
            if shape != ([teachers] * students, people, len(self.map[0].place)):
                raise ValueError("a text of the map without every provider")
        return self


class Vectors(NamedTuple):
    """A provider and its vectors of the tests' texts, by list ``[n, E]``."""

    provider: Provider
    lists: Mapping[str, np.ndarray]


def pairs_of(providers: Sequence[Provider]) -> list[tuple[int, int]]:
    """Every student with every teacher, by position."""
    students = [i for i, provider in enumerate(providers) if provider.role == "student"]
    teachers = [i for i, provider in enumerate(providers) if provider.role == "teacher"]
    return [(student, teacher) for student in students for teacher in teachers]


def cut(text: str) -> str:
    """The first ``LONGEST`` characters of ``text``, as it may be printed."""
    clean = shown(text[: 2 * LONGEST])
    return clean if len(clean) <= LONGEST and len(text) <= 2 * LONGEST else clean[: LONGEST - 1].rstrip() + "…"


def write(found: ByText, path: Path) -> None:
    """Write the file, atomically and with its checksum; equal content gives equal bytes."""
    tree = sealed(found.model_dump(mode="json"))
    write_atomic(path, json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")


def read(path: Path) -> ByText | None:
    """Read what :func:`write` wrote; None if there is no such file.

    Raises:
      UserError: the file is damaged, or of another format.
    """
    return read_record(path, ByText, "of format 1") if path.exists() else None
